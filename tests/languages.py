"""10,260 strings in 54 languages, always the same: captions made of names, and what is hard about text.

tools/make_tokenizer_goldens.py records what other libraries make of them, the tests what clipjax does.
"""

import functools
import gzip
import hashlib
import importlib.resources
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from clipjax.data.tokenizers.clean import collapse, fix

MORE = Path(__file__).parent / "data" / "golden" / "language_names.json.gz"

# {a}, {b}: names; {A}: the first in capitals; {n}: a number; {m}: the first, wrongly decoded.
PLAIN = (
    "{a}",
    "{a}, {b}",
    "a photo of {a}",
    "{A}",
    "{a} - {b}.",
    "{n} {a}",
    "{a} ({b})",
    "{a}: {b}; {b}!",
    "{a}? {a}! {b}...",
)
HARD = (
    "{a} 😀",
    "<b>{a}</b> &amp; {b}",
    "“{a}” – ‘{b}’",
    "  {a}\t{b}\n",
    "{a}_{b}",
    "{a}\u200d{b}\ufeff",
    "{m}",
    "{a}\x00\x1b[1m{b}",
    "#{a} @{b} 5{n}% 1,000.{n}",
    "{a}/{b}\\{a}'s {b}'LL",
)
PER_LANGUAGE = 190
STRINGS = 54 * PER_LANGUAGE


def names() -> dict[str, list[str]]:
    """Names by language: those of the drawings, and more."""
    folder = importlib.resources.files("clipjax") / "assets" / "drawings" / "names"
    found = {
        file.name.removesuffix(".json.gz"): [
            words[0] for words in json.loads(gzip.decompress(file.read_bytes()))
        ]
        for file in folder.iterdir()
    }
    found |= json.loads(gzip.decompress(MORE.read_bytes()))["names"]
    return dict(sorted(found.items()))


@functools.cache
def strings() -> tuple[tuple[str, list[str], list[str]], ...]:
    """(language, plain strings, hard strings): 90 and 100 of every language."""
    return tuple(_strings())


def _strings() -> Iterator[tuple[str, list[str], list[str]]]:
    for language, known in names().items():
        plain, hard = [], []
        for i in range(PER_LANGUAGE):
            a, b = known[(i * 37) % len(known)], known[(i * 61 + 17) % len(known)]
            wrong = a.encode().decode("cp1252", errors="ignore")
            templates, into = (PLAIN, plain) if i < 90 else (HARD, hard)
            template = templates[i % len(templates)]
            into.append(template.format(a=a, b=b, A=a.upper(), n=i * i, m=wrong))
        yield language, plain, hard


def comparable(kind: str, text: str) -> bool:
    """Whether clipjax means to be equal to transformers on a text (docs/tokenizers.md, "Differences").

    Args:
      kind: "clip_bpe", "siglip", "siglip2", or anything that is always equal.
      text: any.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # transformers refuses lone surrogates
        return False
    if (
        kind == "clip_bpe"
    ):  # It repairs no text, composes accents, and lower-cases character by character.
        same = collapse(fix(text)) == collapse(text) == unicodedata.normalize("NFC", collapse(text))
        lower = text.lower() == "".join(map(str.lower, text))
        return same and lower and not any(end in text.lower() for end in ("of_text>", "|>", "ſ"))
    if kind == "siglip":
        # It knows "</s>", deletes "_", lower-cases before it removes punctuation, and doubles the first space where
        # the model itself does not normalise.
        return not any(character in text for character in "_<▁Σ") and text == text.lstrip()
    if kind == "siglip2":  # It lower-cases character by character.
        return text.lower() == "".join(map(str.lower, text))
    return True


Rows = Callable[[list[str]], np.ndarray]


def digests(kind: str, rows: Rows) -> tuple[dict[str, str], int]:
    """By language, a hash of the rows of all strings on which libraries are to be equal; and their number."""
    found, count = {}, 0
    for language, plain, hard in strings():
        texts = [text for text in plain + hard if comparable(kind, text)]
        ids = np.ascontiguousarray(rows(texts), "<i4")
        found[language] = hashlib.sha256(ids.tobytes()).hexdigest()[:12]
        count += len(texts)
    return found, count
