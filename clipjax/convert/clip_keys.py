"""Rows for the names of OpenAI's CLIP, which open_clip, Long-CLIP and CLIP-MoE took over.

Image towers are under `visual.`; the text tower is at the top (OpenAI, open_clip's `CLIP`) or under `text.`
(`CustomTextCLIP`, `CoCa`).
"""

from collections.abc import Mapping
from typing import Any

from clipjax.convert.blocks import (
    IMAGE_BLOCKS,
    TEXT_BLOCKS,
    conv_norm,
    linear,
    norm,
    openai_block,
)
from clipjax.convert.layouts import CONV, DROP_1, LINEAR, ONE, POINTWISE
from clipjax.convert.tables import Row


def vit_rows(model: Mapping[str, Any]) -> list[Row]:
    """open_clip's `VisionTransformer`."""
    return [
        Row("visual.class_embedding", "image/class_token", DROP_1),
        Row("visual.positional_embedding", "image/position_embedding"),
        Row("visual.conv1.weight", "image/stem/kernel", CONV),
        *norm("visual.ln_pre", "image/norm_pre"),
        *openai_block("visual.transformer.resblocks.{i}", IMAGE_BLOCKS),
        *attentional_pool(model["image"]),
        *norm("visual.ln_post", "image/norm_post"),
        Row("visual.proj", "image_head/out/kernel"),
    ]


def attentional_pool(image: Mapping[str, Any]) -> list[Row]:
    """CoCa's pooling: a `torch.nn.MultiheadAttention`, whose keys' names depend on the widths it joins."""
    source, target = "visual.attn_pool", "image/pool"
    parts = ("to_query", "to_key", "to_value")
    kernels = tuple(f"{target}/{part}/kernel" for part in parts)
    if image.get("pool_width") in (None, image.get("width")):
        weights = [Row(f"{source}.attn.in_proj_weight", kernels, LINEAR)]
    else:
        weights = [
            Row(f"{source}.attn.{x}_proj_weight", kernel, LINEAR)
            for x, kernel in zip("qkv", kernels, strict=True)
        ]
    return [
        Row(f"{source}.query", f"{target}/query"),
        *norm(f"{source}.ln_q", f"{target}/norm_query"),
        *norm(f"{source}.ln_k", f"{target}/norm_key"),
        *weights,
        Row(f"{source}.attn.in_proj_bias", tuple(f"{target}/{part}/bias" for part in parts)),
        *linear(f"{source}.attn.out_proj", f"{target}/out"),
    ]


def resnet_rows() -> list[Row]:
    """CLIP's `ModifiedResNet`."""
    block, target = "visual.layer{s}.{j}", "image/layer_{s}/block_{j}"
    pool = "visual.attnpool"
    return [
        *(
            row
            for i in (1, 2, 3)
            for row in conv_norm(f"visual.conv{i}", f"visual.bn{i}", f"image/stem_{i}", CONV)
        ),
        *conv_norm(f"{block}.conv1", f"{block}.bn1", f"{target}/conv_1", POINTWISE),
        *conv_norm(f"{block}.conv2", f"{block}.bn2", f"{target}/conv_2", CONV),
        *conv_norm(f"{block}.conv3", f"{block}.bn3", f"{target}/conv_3", POINTWISE),
        *conv_norm(
            f"{block}.downsample.0", f"{block}.downsample.1", f"{target}/shortcut", POINTWISE
        ),
        Row(f"{pool}.positional_embedding", "image/pool/position_embedding"),
        *(
            row
            for x, part in (("q", "query"), ("k", "key"), ("v", "value"), ("c", "out"))
            for row in linear(f"{pool}.{x}_proj", f"image/pool/{part}")
        ),
    ]


# Batch normalisation counts the batches it has seen, which nothing reads where the statistics are fixed.
RESNET_DROPPABLE = (
    "visual.bn{s}.num_batches_tracked",
    "visual.layer{s}.{j}.bn{k}.num_batches_tracked",
    "visual.layer{s}.{j}.downsample.1.num_batches_tracked",
)


def text_rows(model: Mapping[str, Any], prefix: str = "") -> list[Row]:
    """open_clip's `TextTransformer`, whose keys begin with `prefix`."""
    if model["text_projection"] == "bias":
        projection = linear(f"{prefix}text_projection", "text_head/out")
    else:
        projection = [Row(f"{prefix}text_projection", "text_head/out/kernel")]
    return [
        Row(f"{prefix}token_embedding.weight", "text/token_embedding"),
        Row(f"{prefix}positional_embedding", "text/position_embedding"),
        Row(f"{prefix}cls_emb", "text/class_token", DROP_1),
        *openai_block(f"{prefix}transformer.resblocks.{{i}}", TEXT_BLOCKS),
        *norm(f"{prefix}ln_final", "text/norm_post"),
        *projection,
    ]


def logit_rows(one_dimensional: bool = False) -> list[Row]:
    """Scale and bias, scalars or of shape [1]."""
    layout = (ONE,) if one_dimensional else ()
    return [Row(name, name, *layout) for name in ("logit_scale", "logit_bias")]
