"""Tokenizers: from strings to int32 ids [n, L].

A tokenizer has `length`, `vocab_size` and `pad_id`; `encode(text)` gives all ids of one text, `__call__(texts)` cuts
and pads to the length as the original does, `encode_rows(texts)` tells with it which texts were cut (padding may be an
id that texts hold too, as SigLIP's is, so the rows do not tell); `decode(ids)` gives the text back; `save(directory)`
and `load(config, directory)` are inverse, so that a checkpoint can carry it. docs/tokenizers.md: which settings belong
to which model.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipjax import registry
from clipjax.errors import UserError

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
    """The tokenizer of a run's config: `kind` and its settings, with the text tower's length."""
    settings = dict(config)
    kind = settings.pop("kind")
    return registry.call(
        registry.lookup(kind, KINDS, "tokenizer"), settings, f"Tokenizer {kind!r}", length=length
    )


def make_tokenizers(config: Mapping[str, Any]) -> tuple[Tokenizer, Tokenizer]:
    """A run's tokenizers of captions and of region texts, which may be shorter (`data.regions.text_length`)."""
    length = config["model"]["text"]["length"]
    region_length = config["data"]["regions"]["text_length"]
    whole = isinstance(region_length, int) and not isinstance(region_length, bool)
    if region_length is not None and not (whole and region_length > 0):
        raise UserError(
            f"data.regions.text_length must be a whole number above 0, or None, not {region_length!r}."
        )
    captions = make_tokenizer(config["tokenizer"], length)
    if region_length is None:
        return captions, captions
    return captions, make_tokenizer(config["tokenizer"], region_length)


def load_tokenizer(config: Mapping[str, Any], directory: Path) -> Tokenizer:
    """The tokenizer that `save(directory)` described by `config`."""
    return registry.lookup(config["kind"], KINDS, "tokenizer").load(dict(config), directory)
