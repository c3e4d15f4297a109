"""Long-CLIP (arXiv 2403.15378): OpenAI's CLIP for 248 tokens, whose first 20 positions stay as they were.

Its state dicts have two position tables: rows 0 to 19 are read from the first, which was frozen, the others from the
second. Here they are one table. What the other rows of the two hold is never read; it is written as zeros.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipjax.convert.clip_keys import logit_rows, text_rows, vit_rows
from clipjax.convert.clip_shapes import as_clips, clip_model
from clipjax.convert.express import check_expressed, check_named, check_preset
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.layouts import Layout
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS
from clipjax.data.tokenizers import Tokenizer
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.errors import UserError

NAME = "long_clip"
LENGTH, KEPT = 248, 20  # numbers in its code
POSITIONS, MORE = "positional_embedding", "positional_embedding_res"


def recognise(weights: Weights) -> bool:
    """Two position tables, and no experts."""
    return MORE in weights.tensors and not any(".experts." in key for key in weights.tensors)


def describe(weights: Weights, options: Options) -> Description:
    """See `formats.base.Format`."""
    if options.model is not None:
        raise UserError("Long-CLIP's files say which model they hold; leave --model out.")
    model = clip_model({k: t.shape for k, t in weights.tensors.items()}, quick_gelu=True)
    text = model.text
    usual = text.vocab_size == ClipBPE.vocab_size
    tokenizer = functools.partial(ClipBPE, length=text.length) if usual else None
    return Description(model, table(model), PRESETS["clip"], tokenizer, "bicubic_antialias")


def table(model: Mapping[str, Any]) -> KeyTable:
    """Keys of a model."""
    rows = [
        *vit_rows(model),
        *(row for row in text_rows(model) if row.source != POSITIONS),
        *position_rows(model["text"]["length"]),
        *logit_rows(),
    ]
    return KeyTable("a Long-CLIP", rows)


def position_rows(length: int) -> list[Row]:
    """The two tables of `length` rows."""
    target = "text/position_embedding"
    return [
        Row(POSITIONS, target, _rows(0, KEPT, length), select=(slice(0, KEPT),)),
        Row(MORE, target, _rows(KEPT, length, length), select=(slice(KEPT, length),)),
    ]


def _rows(start: int, stop: int, length: int) -> Layout:
    def spread(x: np.ndarray) -> np.ndarray:
        whole = np.zeros((length, *x.shape[1:]), x.dtype)
        whole[start:stop] = x
        return whole

    return Layout(lambda x, shape: x[start:stop], spread)


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A state dict that Long-CLIP's `longclip.load` takes."""
    del hints
    if tokenizer is not None and not isinstance(tokenizer, ClipBPE):
        raise UserError("Long-CLIP has CLIP's own tokenizer, and this model has another one.")
    check_named(config.model, "Long-CLIP", image=("vit",), text=("transformer",))
    check_preset(config, PRESETS["clip"], "Long-CLIP")
    understood = as_clips(config.model, "Long-CLIP")
    understood.text.length = LENGTH
    check_expressed(config.model, understood, "Long-CLIP")
    return Export(table(config.model), "model.pt")
