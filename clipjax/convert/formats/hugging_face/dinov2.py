"""DINOv2 in transformers, with and without registers, with an MLP or SwiGLU (giant)."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipjax.convert.blocks import IMAGE_BLOCKS, linear, norm, separate_qkv
from clipjax.convert.express import has_towers
from clipjax.convert.formats.hugging_face import towers
from clipjax.convert.layouts import CONV, LEADING_1, LINEAR
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS
from clipjax.models import image_section, model_section

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
WRITTEN = ("dinov2", "dinov2_with_registers")
PRESET = PRESETS["imagenet"]
PREFIXES = ()

_DEFAULTS = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    image_size=224,
    patch_size=14,
    qkv_bias=True,
    use_swiglu_ffn=False,
)
_DEFAULT_PATCH = {"dinov2": 14, "dinov2_with_registers": 16}


def to_model(config: Mapping[str, Any], keys: Collection[str]) -> ConfigDict:
    """The `model` section of a config.json."""
    del keys
    kind = config["model_type"]
    config = _DEFAULTS | dict(patch_size=_DEFAULT_PATCH[kind], num_register_tokens=4) | config
    width = config["hidden_size"]
    hidden = int(width * config["mlp_ratio"])
    if config["use_swiglu_ffn"]:
        hidden = swiglu_width(hidden)
    image = image_section(
        pre_norm=False,
        patch_bias=True,
        layer_scale=1.0,
        mlp="swiglu" if config["use_swiglu_ffn"] else "mlp",
        qkv_bias=config["qkv_bias"],
        registers=config["num_register_tokens"] if kind == "dinov2_with_registers" else 0,
        **towers.vision(config | dict(intermediate_size=hidden)),
    )
    return model_section(image, kind="image_encoder", embed_dim=width, image_projection="none")


def swiglu_width(hidden: int) -> int:
    """Two thirds of an MLP's width, rounded up to a multiple of 8: as many parameters with one matrix more."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def from_model(model: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config.json of a `model` section."""
    image = model["image"]
    config = towers.vision_config(image)
    hidden, width = config.pop("intermediate_size"), image["width"]
    swiglu = image["mlp"] == "swiglu"
    ratios = range(1, 33)
    fitting = [r for r in ratios if (swiglu_width(width * r) if swiglu else width * r) == hidden]
    config |= dict(
        mlp_ratio=fitting[0] if fitting else max(1, hidden // width),  # whole numbers only
        use_swiglu_ffn=swiglu,
        qkv_bias=image["qkv_bias"],
        layerscale_value=1.0,
    )
    if kind == "dinov2_with_registers":
        config["num_register_tokens"] = image["registers"]
        name = "Dinov2WithRegistersModel"
    else:
        config["use_mask_token"] = False
        name = "Dinov2Model"
    return dict(architectures=[name], model_type=kind) | config


def fits(model: Mapping[str, Any]) -> bool:
    """Whether a model has such a tower, and nothing else."""
    return has_towers(model, "vit", None)


def table(model: Mapping[str, Any]) -> KeyTable:
    """Keys of a model."""
    image = model["image"]
    source, target = "encoder.layer.{i}", IMAGE_BLOCKS
    attention = f"{source}.attention.attention"
    packed = tuple(f"{target}/mlp/{name}" for name in ("fc_gate", "fc_in"))
    mlp = [*linear(f"{source}.mlp.fc1", f"{target}/mlp/fc_in")]
    out = f"{source}.mlp.fc2"
    if image["mlp"] == "swiglu":
        out = f"{source}.mlp.weights_out"
        weights = f"{source}.mlp.weights_in"
        mlp = [
            Row(f"{weights}.weight", tuple(f"{name}/kernel" for name in packed), LINEAR),
            Row(f"{weights}.bias", tuple(f"{name}/bias" for name in packed)),
        ]
    # Masked patches, of the pretraining; the loader with registers has no way to do without.
    mask = {"embeddings.mask_token": np.zeros((1, image["width"]), np.float32)}
    return KeyTable(
        "a DINOv2 of transformers",
        [
            Row("embeddings.cls_token", "image/class_token", LEADING_1),
            Row("embeddings.register_tokens", "image/register_tokens", LEADING_1),
            Row("embeddings.position_embeddings", "image/position_embedding", LEADING_1),
            Row("embeddings.patch_embeddings.projection.weight", "image/stem/kernel", CONV),
            Row("embeddings.patch_embeddings.projection.bias", "image/stem/bias"),
            *norm(f"{source}.norm1", f"{target}/norm_1"),
            *separate_qkv(
                [f"{attention}.{part}" for part in ("query", "key", "value")], f"{target}/attention"
            ),
            *linear(f"{source}.attention.output.dense", f"{target}/attention/out"),
            Row(f"{source}.layer_scale1.lambda1", f"{target}/scale_1/gamma"),
            *norm(f"{source}.norm2", f"{target}/norm_2"),
            *mlp,
            *linear(out, f"{target}/mlp/fc_out"),
            Row(f"{source}.layer_scale2.lambda1", f"{target}/scale_2/gamma"),
            *norm("layernorm", "image/norm_post"),
        ],
        droppable=["embeddings.mask_token"],
        written=mask if image["registers"] else {},
    )
