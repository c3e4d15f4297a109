"""Tokenizers: from strings to int32 ids [n, L].

A tokenizer has `length`, `vocab_size` and `pad_id`; `encode(text)` gives all ids of one text, `__call__(texts)` cuts
and pads to the length as the original does, `encode_rows(texts)` tells with it which texts were cut (padding may be an
id that texts hold too, as SigLIP's is, so the rows do not tell); `decode(ids)` gives the text back; `save(directory)`
and `load(config, directory)` are inverse, so that a checkpoint can carry it. docs/tokenizers.md: which settings belong
to which model.
"""

import contextlib
import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipjax import registry

KINDS = {
    "absent": "clipjax.data.tokenizers.absent:Absent",
    "clip_bpe": "clipjax.data.tokenizers.clip_bpe:ClipBPE",
    "hf_json": "clipjax.data.tokenizers.hf_json:HFTokenizer",
    "sentencepiece": "clipjax.data.tokenizers.sentencepiece:SentencePiece",
}


class Tokenizer(Protocol):
    """What every tokenizer offers. It can be pickled, and threads may share it."""

    length: int
    vocab_size: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """All ids of one text, special tokens included, not cut."""
        ...

    def encode_rows(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int32 [n, length], cut and padded, and bool [n]: whether the text had more ids than a row."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [n, length], cut and padded."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids or of a row, without special tokens and padding."""
        ...

    def save(self, directory: Path) -> dict[str, Any]:
        """Writes the files it needs and returns the config for `load`."""
        ...


def make_tokenizer(config: Mapping[str, Any], length: int) -> Tokenizer:
    """The tokenizer of a config section, `kind` and its settings, with rows of `length` ids.

    Its files are read once: as long as anyone holds the tokenizer, who asks for the same gets that one.
    """
    settings = dict(config)
    key = json.dumps((settings, length), sort_keys=True, default=repr)
    found = _made.get(key)
    if found is None:
        kind = settings.pop("kind")
        found = registry.call(
            registry.lookup(kind, KINDS, "tokenizer"),
            settings,
            f"Tokenizer {kind!r}",
            length=length,
        )
        with contextlib.suppress(TypeError):  # a class that takes no weak references
            _made[key] = found
    return found


_made: weakref.WeakValueDictionary[str, Tokenizer] = weakref.WeakValueDictionary()


def run_tokenizer(config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer with which a run's model reads texts, which its checkpoints carry; None if nothing reads any.

    Its rows are as long as the text tower's, or, where the model has no part `text`, as those of the feature `text`.
    """
    tower = config["model"].get("text") or {}
    feature = config["data"]["features"].get("text") or {}
    length = tower.get("length") or feature.get("length")
    if length is None:
        return None
    section = config["tokenizer"] if tower else feature.get("tokenizer") or config["tokenizer"]
    return make_tokenizer(section, length)


def load_tokenizer(config: Mapping[str, Any], directory: Path) -> Tokenizer:
    """The tokenizer that `save(directory)` described by `config`."""
    return registry.lookup(config["kind"], KINDS, "tokenizer").load(dict(config), directory)
