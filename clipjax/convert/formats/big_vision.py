"""big_vision's `.npz` of two-tower models: CLIP, SigLIP, SigLIP 2 (NaFlex too), scanned or not.

There is no config: all but three things follow from the shapes. Texts are pooled at their last token and eps is 1e-6,
as in all of its released image-text models; and a size that the patch does not divide (384 px in patches of 14) is
taken for the part that is seen (378); give --size then.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipjax.convert.express import check_expressed, check_named, check_preset
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.layouts import AS_IS, LEADING_1, ONE, split_axis, with_shape
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError
from clipjax.models import image_section, model_section, text_section

NAME = "big_vision"
PRESET = PRESETS["siglip"]._replace(interpolation="bilinear")

_PATCHES = with_shape(lambda x: x.reshape(-1, x.shape[-1]))  # [p * p * 3, W] -> [p, p, 3, W]
_EPS = 1e-6

Shapes = Mapping[str, tuple[int, ...]]


def recognise(weights: Weights) -> bool:
    """An image tower or a text tower under big_vision's names."""
    keys = weights.tensors.keys()
    return "img/embedding/kernel" in keys or "txt/Embed_0/embedding" in keys


def describe(weights: Weights, options: Options) -> Description:
    """See `formats.base.Format`."""
    if options.model is not None:
        raise UserError("The shapes in a file of big_vision say what it is; leave --model out.")
    shapes = {key: tensor.shape for key, tensor in weights.tensors.items()}
    model = _model(shapes)
    naflex = model.image.positions == "naflex"
    preset = PRESET._replace(**({"resize": "naflex"} if naflex else {}))
    hints = {"scanned": _scanned(shapes), "scalars": shapes.get("t") == ()}
    note = "Files of big_vision do not say how images are prepared; SigLIP's way is taken."
    return Description(model, table(model, hints), preset, None, "zoom", (note,), hints)


def _scanned(shapes: Shapes) -> bool:
    return any("/encoderblock/" in key for key in shapes)


def _model(shapes: Shapes) -> ConfigDict:
    try:
        image, text = _image(shapes), _text(shapes)
        projected = "img/head/kernel" in shapes
        return model_section(
            image,
            text,
            embed_dim=shapes["img/head/kernel"][1] if projected else image.width,
            image_projection="bias" if projected else "none",
            text_projection="bias" if "txt/head/kernel" in shapes else "none",
            init_scale=10.0,
            init_bias=-10.0 if "b" in shapes else None,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"This is not an image-text model of big_vision: {error} is missing or misshapen."
        ) from error


def _encoder(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Width, depth, heads and MLP of the encoder whose keys begin with `prefix`."""
    block = f"{prefix}encoderblock"
    if f"{block}/LayerNorm_0/scale" in shapes:
        depth, first, skip = shapes[f"{block}/LayerNorm_0/scale"][0], block, 1
    else:
        pattern = re.compile(re.escape(block) + r"_(\d+)/")
        depth = 1 + max(int(m[1]) for m in map(pattern.match, shapes) if m)
        first, skip = f"{block}_0", 0
    attention = f"{first}/MultiHeadDotProductAttention_0"
    width, heads, _ = shapes[f"{attention}/query/kernel"][skip:]
    hidden = shapes[f"{first}/MlpBlock_0/Dense_0/kernel"][skip + 1]
    return dict(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden / width,
        activation="gelu_tanh",
        eps=_EPS,
    )


def _image(shapes: Shapes) -> ConfigDict:
    kernel, table_ = shapes["img/embedding/kernel"], shapes["img/pos_embedding"]
    naflex = len(kernel) == 2
    patch = math.isqrt(kernel[0] // 3) if naflex else kernel[0]
    grid = table_[0] if naflex else math.isqrt(table_[1])
    if not naflex and grid * grid != table_[1]:
        raise UserError(f"The {table_[1]} positions of the image tower are not a square grid.")
    pool = "map" if any(key.startswith("img/MAPHead_0/") for key in shapes) else "average"
    if "img/cls" in shapes:
        pool = "class"
    return image_section(
        size=grid * patch,
        patch=patch,
        pool=pool,
        positions="naflex" if naflex else "learned",
        class_position=False,
        pre_norm=False,
        patch_bias=True,
        **_encoder(shapes, "img/Transformer/"),
    )


def _text(shapes: Shapes) -> ConfigDict:
    return text_section(
        length=shapes["txt/pos_embedding"][1],
        vocab_size=shapes["txt/Embed_0/embedding"][0],
        attention="full",
        pool="last",
        **_encoder(shapes, "txt/Encoder_0/"),
    )


def table(model: Mapping[str, Any], hints: Mapping[str, Any]) -> KeyTable:
    """Keys of a model."""
    image, text = model["image"], model["text"]
    naflex = image["positions"] == "naflex"
    scanned = bool(hints.get("scanned"))
    one = AS_IS if hints.get("scalars") else ONE
    return KeyTable(
        "an image-text model of big_vision",
        [
            Row("img/embedding/kernel", "image/stem/kernel", _PATCHES if naflex else AS_IS),
            Row("img/embedding/bias", "image/stem/bias"),
            Row("img/pos_embedding", "image/position_embedding", AS_IS if naflex else LEADING_1),
            Row("img/cls", "image/class_token", LEADING_1),
            *_blocks("img/Transformer/", "image", image["heads"], scanned),
            *_norm("img/Transformer/encoder_norm", "image/norm_post"),
            *_map_pool("img/MAPHead_0", "image/pool", image["heads"]),
            *_dense("img/head", "image_head/out"),
            Row("txt/Embed_0/embedding", "text/token_embedding"),
            Row("txt/pos_embedding", "text/position_embedding", LEADING_1),
            *_blocks("txt/Encoder_0/", "text", text["heads"], scanned),
            *_norm("txt/Encoder_0/encoder_norm", "text/norm_post"),
            *_dense("txt/head", "text_head/out"),
            Row("t", "logit_scale", one),
            Row("b", "logit_bias", one),
        ],
    )


def _dense(source: str, target: str) -> list[Row]:
    return [Row(f"{source}/{name}", f"{target}/{name}") for name in ("kernel", "bias")]


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}/{name}", f"{target}/{name}") for name in ("scale", "bias")]


def _blocks(prefix: str, tower: str, heads: int, scanned: bool) -> list[Row]:
    """All layers: one array for all of them if scanned, as here."""
    source = f"{prefix}encoderblock" + ("" if scanned else "_{i}")
    target = f"{tower}/transformer/blocks" + ("" if scanned else "/{i}")
    layer = (slice(None),) if scanned else ()
    attention = f"{source}/MultiHeadDotProductAttention_0"
    rows = [
        *_norm(f"{source}/LayerNorm_0", f"{target}/norm_1"),
        Row(f"{attention}/out/kernel", f"{target}/attention/out/kernel", split_axis(-2, heads)),
        Row(f"{attention}/out/bias", f"{target}/attention/out/bias"),
        *_norm(f"{source}/LayerNorm_1", f"{target}/norm_2"),
        *_dense(f"{source}/MlpBlock_0/Dense_0", f"{target}/mlp/fc_in"),
        *_dense(f"{source}/MlpBlock_0/Dense_1", f"{target}/mlp/fc_out"),
    ]
    for part, name in enumerate(("query", "key", "value")):
        kernel, bias = (*layer, *np.s_[:, part]), (*layer, part)
        fused = f"{target}/attention/qkv"
        rows.append(Row(f"{attention}/{name}/kernel", f"{fused}_kernel", select=kernel))
        rows.append(Row(f"{attention}/{name}/bias", f"{fused}_bias", select=bias))
    return rows


def _map_pool(source: str, target: str, heads: int) -> list[Row]:
    attention = f"{source}/MultiHeadDotProductAttention_0"
    split = split_axis(-1, heads)
    return [
        Row(f"{source}/probe", f"{target}/probe", LEADING_1),
        *(
            Row(f"{attention}/{part}/{name}", f"{target}/{part}/{name}", split)
            for part in ("query", "key", "value")
            for name in ("kernel", "bias")
        ),
        Row(f"{attention}/out/kernel", f"{target}/out/kernel", split_axis(-2, heads)),
        Row(f"{attention}/out/bias", f"{target}/out/bias"),
        *_norm(f"{source}/LayerNorm_0", f"{target}/norm"),
        *_dense(f"{source}/MlpBlock_0/Dense_0", f"{target}/mlp/fc_in"),
        *_dense(f"{source}/MlpBlock_0/Dense_1", f"{target}/mlp/fc_out"),
    ]


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A `.npz` as big_vision's own; the tokenizer is named in its configs, not in the file."""
    del tokenizer
    model = config.model
    check_named(model, "big_vision", image=("vit",), text=("transformer",))
    naflex = model.image.positions == "naflex"
    preset = PRESET._replace(**({"resize": "naflex"} if naflex else {}))
    check_expressed(model, _as_big_visions(model), "big_vision")
    check_preset(config, preset, "big_vision", free=("interpolation",))
    return Export(table(model, hints), "model.npz")


def _as_big_visions(model: ConfigDict) -> ConfigDict:
    """What a file makes of a model: big_vision's in its sizes, whatever else it is."""
    image, text = model.image, model.text
    projected = model.image_projection != "none"
    return model_section(
        image_section(
            size=image.size,
            patch=image.patch,
            pool=image.pool if image.pool in ("map", "average", "class") else "map",
            positions=image.positions if image.positions in ("learned", "naflex") else "learned",
            class_position=False,
            pre_norm=False,
            patch_bias=True,
            **_sizes(image),
        ),
        text_section(
            length=text.length,
            vocab_size=text.vocab_size,
            attention="full",
            pool="last",
            **_sizes(text),
        ),
        embed_dim=model.embed_dim if projected else image.width,
        image_projection="bias" if projected else "none",
        text_projection="none" if model.text_projection == "none" else "bias",
        init_bias=model.init_bias,
    )


def _sizes(tower: ConfigDict) -> dict[str, Any]:
    sizes = {name: tower[name] for name in ("width", "depth", "heads", "mlp_ratio")}
    return sizes | dict(activation="gelu_tanh", eps=_EPS)
