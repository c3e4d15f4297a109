"""Reading a tokenizer.json, and writing clipjax's own settings into one.

What clipjax does to a text before and after the file's own steps (a cleaning, ids at its start and end) can be said in
the file itself, in the terms of the `tokenizers` library; whoever loads the file then gets the same ids.
"""

import json
import string
from collections.abc import Mapping
from typing import Any

from clipjax.errors import UserError

_PUNCTUATION = "".join(f"\\{c}" for c in string.punctuation if c != "_")
# What Python's str.split takes for whitespace.
_WHITESPACE = r"[\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"


def _replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


# "Lowercase" goes letter by letter; Python has another small sigma for the end of a word.
_LOWER = [
    _replace("ς", Regex=r"\p{Cased}\p{Case_Ignorable}*\KΣ(?!\p{Case_Ignorable}*\p{Cased})"),
    {"type": "Lowercase"},
]
# The cleanings of clipjax.data.tokenizers.clean.
_CLEANINGS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "lower": _LOWER,
    "lower_ascii": [_replace(letter.lower(), String=letter) for letter in string.ascii_uppercase],
    "canonicalize": [
        _replace(" ", String="_"),
        _replace("", Regex=f"[{_PUNCTUATION}]"),
        *_LOWER,
        _replace(" ", Regex=f"{_WHITESPACE}+"),
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
}


def token_text(token: str | Mapping[str, Any] | None) -> str | None:
    """The text of a token as configs have it: a string, or an object with `content`."""
    return token["content"] if isinstance(token, Mapping) else token


def id_of(file: Mapping[str, Any], token: str | None) -> int | None:
    """Id of a token by its text; None if the file does not have it."""
    for added in file.get("added_tokens") or ():
        if added["content"] == token:
            return added["id"]
    vocabulary = (file.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, Mapping):
        return vocabulary.get(token)
    return next((i for i, (text, *_) in enumerate(vocabulary) if text == token), None)


def token_of(file: Mapping[str, Any], number: int) -> str:
    """Text of a token by its id, which the file must have."""
    for added in file.get("added_tokens") or ():
        if added["id"] == number:
            return added["content"]
    vocabulary = file["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return next(text for text, i in vocabulary.items() if i == number)
    return vocabulary[number][0]


def parse(content: bytes, named: object) -> dict[str, Any]:
    """The file's object; UserError if it is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{named} is not a tokenizer.json: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{named} is not a tokenizer.json: it is no JSON object.")
    return found


def with_settings(
    file: Mapping[str, Any],
    clean: str = "none",
    file_specials: bool = True,
    bos_id: int | None = None,
    eos_id: int | None = None,
) -> dict[str, Any]:
    """The file that does itself what the tokenizer kind `hf_json` does around it with these settings.

    Raises:
      UserError: ids around those of the file, for which there is no post-processor.
    """
    changed = dict(file)
    if steps := _CLEANINGS[clean]:
        own = file.get("normalizer")
        own = own["normalizers"] if own and own["type"] == "Sequence" else [own] if own else []
        changed["normalizer"] = {"type": "Sequence", "normalizers": [*steps, *own]}
    if file_specials and (bos_id is not None or eos_id is not None):
        raise UserError(
            "A tokenizer.json cannot hold ids around those that it has already (bos_id, eos_id); set "
            "file_specials=False, and bos_id and eos_id to all there is."
        )
    if not file_specials:
        changed["post_processor"] = _template(file, bos_id, eos_id)
    return changed


def _template(file: Mapping[str, Any], bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
    names = {i: token_of(file, i) for i in (bos_id, eos_id) if i is not None}

    def around(letter: str, kind: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": names[i], "type_id": kind}}] if i is not None else []
            for i in (bos_id, eos_id)
        )
        return [*before, {"Sequence": {"id": letter, "type_id": kind}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()
        },
    }
