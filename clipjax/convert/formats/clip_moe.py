"""CLIP-MoE (arXiv 2409.19291): Long-CLIP whose last blocks have several experts in place of the MLP.

How many experts a token is sent to is not in the file: two, as in all released models, unless --model=top1 (or top3,
...) says otherwise.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.convert.blocks import IMAGE_BLOCKS, TEXT_BLOCKS, openai_block
from clipjax.convert.clip_keys import logit_rows, text_rows, vit_rows
from clipjax.convert.clip_shapes import Shapes, as_clips, clip_model
from clipjax.convert.express import check_expressed, check_named, check_preset
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.formats.long_clip import LENGTH, POSITIONS, position_rows
from clipjax.convert.layouts import LINEAR
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS
from clipjax.data.tokenizers import Tokenizer
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.errors import UserError

NAME = "clip_moe"
_USUAL = 2
_TOWERS = {"image": "visual.transformer.resblocks", "text": "transformer.resblocks"}


def recognise(weights: Weights) -> bool:
    """CLIP's keys, with experts."""
    pattern = re.compile(r"(visual\.)?transformer\.resblocks\.\d+\.experts\.\d+\.c_fc\.weight")
    return any(pattern.fullmatch(key) for key in weights.tensors)


def describe(weights: Weights, options: Options) -> Description:
    """See `formats.base.Format`."""
    chosen = re.fullmatch(r"top([1-9]\d*)", options.model or f"top{_USUAL}")
    if chosen is None:
        raise UserError(
            f"--model={options.model!r}: a CLIP-MoE says all but how many experts a token is sent to; write "
            "--model=top2."
        )
    model = _model({k: t.shape for k, t in weights.tensors.items()}, int(chosen[1]))
    text = model.text
    usual = text.vocab_size == ClipBPE.vocab_size
    tokenizer = functools.partial(ClipBPE, length=text.length) if usual else None
    notes = ()
    if options.model is None:
        notes = (
            f"The file does not say how many experts a token is sent to; {_USUAL} are taken (--model=topK).",
        )
    long = "positional_embedding_res" in weights.tensors
    return Description(
        model,
        table(model, long),
        PRESETS["clip"],
        tokenizer,
        "bicubic_antialias",
        notes,
        {"long": long},
    )


def _model(shapes: Shapes, experts_per_token: int) -> ConfigDict:
    model = clip_model(shapes, quick_gelu=True)
    for tower, blocks in _TOWERS.items():
        pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.experts\.(\d+)\.c_fc\.weight")
        found = [(int(m[1]), int(m[2])) for m in map(pattern.fullmatch, shapes) if m]
        if not found:
            continue
        section = model[tower]
        layers = sorted({layer for layer, _ in found})
        if layers != list(range(section.depth - len(layers), section.depth)):
            raise UserError(
                f"The blocks {layers} of the {tower} tower have experts; clipjax's models have them in the last blocks."
            )
        section.update(
            experts=1 + max(expert for _, expert in found),
            experts_per_token=experts_per_token,
            moe_layers=len(layers),
        )
    return model


def table(model: Mapping[str, Any], long: bool) -> KeyTable:
    """Keys of a model; `long` if it has Long-CLIP's two position tables."""
    text = text_rows(model)
    if long:
        text = [row for row in text if row.source != POSITIONS]
        text += position_rows(model["text"]["length"])
    rows = [*vit_rows(model), *text, *logit_rows()]
    for tower, blocks in (("image", IMAGE_BLOCKS), ("text", TEXT_BLOCKS)):
        rows += _expert_rows(model[tower], f"{_TOWERS[tower]}.{{i}}", blocks)
    return KeyTable("a CLIP-MoE", rows)


def _expert_rows(tower: Mapping[str, Any], source: str, blocks: str) -> list[Row]:
    """The last blocks, which are a stack of their own here."""
    if not tower["experts"]:
        return []
    moe = tower["moe_layers"] or tower["depth"]
    at = {"first": tower["depth"] - moe}
    target = blocks.replace("/blocks/", "/moe/blocks/")
    rows = [row for row in openai_block(source, target, **at) if ".mlp." not in row.source]
    rows.append(Row(f"{source}.gate.weight", f"{target}/mlp/router/kernel", LINEAR, **at))
    for name, ours in (("c_fc", "fc_in"), ("c_proj", "fc_out")):
        expert, stack = f"{source}.experts.{{j}}.{name}", f"{target}/mlp/experts/{{j}}/{ours}"
        rows.append(Row(f"{expert}.weight", f"{stack}/kernel", LINEAR, **at))
        rows.append(Row(f"{expert}.bias", f"{stack}/bias", **at))
    return rows


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A state dict of CLIP-MoE's `clipmoe`."""
    if tokenizer is not None and not isinstance(tokenizer, ClipBPE):
        raise UserError("CLIP-MoE has CLIP's own tokenizer, and this model has another one.")
    model = config.model
    check_named(model, "CLIP-MoE", image=("vit",), text=("transformer",))
    check_preset(config, PRESETS["clip"], "CLIP-MoE")
    if not (model.image.experts or model.text.experts):
        raise UserError(
            "CLIP-MoE is for models with experts (model.image.experts, model.text.experts), and this one has none; "
            "write it for openai or long_clip."
        )
    keys = table(model, hints.get("long", True))
    check_expressed(model, _as_clip_moes(model), "CLIP-MoE")
    return Export(keys, "model.pt")


def _as_clip_moes(model: ConfigDict) -> ConfigDict:
    """What CLIP-MoE makes of a model's file: it has one number of experts, and of blocks with them, for both towers."""
    understood = as_clips(model, "CLIP-MoE")
    understood.text.length = LENGTH
    towers = [model[tower] for tower in ("image", "text") if model[tower].experts]
    blocks = max(tower.moe_layers or tower.depth for tower in towers)
    for tower in (understood.image, understood.text):
        tower.update(
            experts=towers[0].experts,
            experts_per_token=towers[0].experts_per_token,
            moe_layers=min(blocks, tower.depth),
        )
    return understood
