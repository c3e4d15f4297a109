"""OpenAI's CLIP: the TorchScript archives that its repository downloads, and state dicts with the same keys.

There is no config: everything but the heads (64 wide) and the QuickGELU, which are OpenAI's, follows from the shapes.
The three numbers that the archives hold beside the weights tell the format from open_clip's.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipjax.convert.clip_keys import (
    RESNET_DROPPABLE,
    logit_rows,
    resnet_rows,
    text_rows,
    vit_rows,
)
from clipjax.convert.clip_shapes import as_clips, clip_model
from clipjax.convert.express import check_expressed, check_named, check_preset
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.tables import KeyTable
from clipjax.data.presets import PRESETS
from clipjax.data.tokenizers import Tokenizer
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.errors import UserError

NAME = "openai"
NUMBERS = ("input_resolution", "context_length", "vocab_size")


def recognise(weights: Weights) -> bool:
    """A file with OpenAI's three numbers, or any TorchScript archive with CLIP's keys."""
    keys = weights.tensors.keys()
    clip = {"visual.positional_embedding", "visual.attnpool.positional_embedding"} & keys
    return bool(clip) and (weights.kind == "torchscript" or set(NUMBERS) <= keys)


def describe(weights: Weights, options: Options) -> Description:
    """See `formats.base.Format`."""
    if options.model is not None:
        raise UserError("OpenAI's files say which model they hold; leave --model out.")
    model = clip_model({k: t.shape for k, t in weights.tensors.items()}, quick_gelu=True)
    text = model.text
    usual = text.vocab_size == ClipBPE.vocab_size
    return Description(
        model,
        table(model),
        PRESETS["clip"],
        functools.partial(ClipBPE, length=text.length) if usual else None,
        "bicubic_antialias",
    )


def table(model: Mapping[str, Any]) -> KeyTable:
    """Keys of a model."""
    image, text = model["image"], model["text"]
    vit = image["kind"] == "vit"
    numbers = (image["size"], text["length"], text["vocab_size"])
    return KeyTable(
        "a CLIP of OpenAI",
        [*(vit_rows(model) if vit else resnet_rows()), *text_rows(model), *logit_rows()],
        droppable=() if vit else RESNET_DROPPABLE,
        written={name: np.array(n, np.int64) for name, n in zip(NUMBERS, numbers, strict=True)},
    )


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A state dict with OpenAI's keys (`clip.model.build_model` of OpenAI's package takes it)."""
    del hints
    if tokenizer is not None and not isinstance(tokenizer, ClipBPE):
        raise UserError("OpenAI's format has CLIP's own tokenizer, and this model has another one.")
    check_named(config.model, "OpenAI's format", image=("vit", "resnet"), text=("transformer",))
    check_preset(config, PRESETS["clip"], "OpenAI's format")
    check_expressed(config.model, as_clips(config.model, "OpenAI's format"), "OpenAI's format")
    return Export(table(config.model), "model.pt")
