"""A tokenizer that a user adds to a checkpoint that came without: a file, or a config section."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.data.tokenizers import KINDS
from clipjax.errors import UserError

_BY_SUFFIX = {".json": "hf_json", ".model": "sentencepiece", ".spm": "sentencepiece"}


def section(given: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The config section (docs/tokenizers.md) of what was given.

    A file may be followed by settings, as in `tokenizer.json,pad_id=1,clean=lower`; the name of a kind that needs no
    file, as `clip_bpe`, stands for itself.

    Raises:
      UserError: it is neither a file of a known kind nor such a name.
    """
    if given is None or isinstance(given, Mapping):
        return given
    name, *settings = str(given).split(",")
    config: dict[str, Any] = {}
    for setting in settings:
        key, found, value = setting.partition("=")
        if not found:
            raise UserError(f"--tokenizer: {setting!r} should be SETTING=VALUE.")
        config[key.strip()] = _value(value.strip())
    if name in KINDS:
        return {"kind": name} | config
    kind = _BY_SUFFIX.get(Path(name).suffix)
    if kind is None:
        raise UserError(
            f"--tokenizer={name!r} must be a tokenizer.json, a SentencePiece .model, or clip_bpe."
        )
    return {"kind": kind, "source": name} | config


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    return int(text) if text.lstrip("-").isdigit() else text
