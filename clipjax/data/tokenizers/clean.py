"""What is done to a text before it is split into tokens, one implementation for every kind of tokenizer.

A cleaning is named in a tokenizer's config (`clean`), as what a checkpoint was trained on cannot be
guessed from its vocabulary. `repair` goes before it where open_clip's tokenizers do so.
"""

import functools
import html
import string
from collections.abc import Callable

import ftfy
import regex

from clipjax.errors import UserError


def unescape(text: str) -> str:
    """`html.unescape` that also takes references of thousands of digits, where int() gives up."""
    try:
        return html.unescape(text)
    except ValueError:
        text = regex.sub(r"&#0+(?=[0-9])", "&#", text)
        # No number of eight digits is a character; html.unescape has U+FFFD for them too.
        return html.unescape(regex.sub(r"&#[1-9][0-9]{7,};?", "\N{REPLACEMENT CHARACTER}", text))


def fix(text: str) -> str:
    """Wrongly decoded text, control characters and HTML references (twice), as open_clip does it."""
    # On printable ASCII without "&" every step below is the identity, and ftfy is what costs most.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    return unescape(unescape(ftfy.fix_text(text)))


def collapse(text: str) -> str:
    """One space for every run of whitespace, none at the ends."""
    return " ".join(text.split())


def well_formed(text: str) -> str:
    """The text with U+FFFD for lone surrogates (pairs are joined), so that UTF-8 can hold it."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return ftfy.fixes.fix_surrogates(text)
    return text


_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def _lower_ascii(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_ASCII_LOWER)


def _canonicalize(text: str) -> str:
    return collapse(text.translate(_NO_PUNCTUATION).lower())


CLEANINGS: dict[str, Callable[[str], str]] = {
    "none": str,
    "lower": str.lower,
    "lower_ascii": _lower_ascii,
    "canonicalize": _canonicalize,
}


def check_clean(clean: str, kind: str) -> None:
    """Raises UserError if there is no cleaning of this name."""
    if clean not in CLEANINGS:
        known = ", ".join(map(repr, CLEANINGS))
        raise UserError(f"{kind}: clean is {clean!r}; it must be one of {known}.")


@functools.cache
def cleaner(clean: str, repair: bool) -> Callable[[str], str]:
    """A function from any str to one that UTF-8 can hold.

    Args:
      clean: "none"; "lower" (`str.lower`); "lower_ascii" (A to Z only: `tf.strings.lower`, with which
        big_vision trained SigLIP and SigLIP 2); or "canonicalize" ("_" is a space, no other ASCII
        punctuation, lower case, whitespace collapsed: `canonicalize_text` of big_vision).
      repair: first `fix` the text and collapse its whitespace, open_clip's "whitespace" cleaning;
        with "lower" or "canonicalize" it makes open_clip's cleanings of these names.
    """
    change = CLEANINGS[clean]
    if repair:
        return lambda text: change(collapse(fix(text)))
    return lambda text: change(well_formed(text))
