"""MLCD's vision towers with 2-D rotary positions (bigG/14 at 336 and 448 px) in transformers.

MLCD's L/14 and B/32 are plain CLIP vision models, see `clip`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.convert.blocks import IMAGE_BLOCKS, hugging_face_block, norm
from clipjax.convert.express import has_towers
from clipjax.convert.formats.hugging_face import towers
from clipjax.convert.layouts import CONV, DROP_1
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS
from clipjax.errors import UserError
from clipjax.models import image_section, model_section

MODEL_TYPES = ("mlcd_vision_model", "mlcd")
WRITTEN = ("mlcd_vision_model",)
PRESET = PRESETS["clip"]
PREFIXES = ("vision_model.",)

_DEFAULTS = dict(
    hidden_size=1664,
    intermediate_size=8192,
    num_hidden_layers=48,
    num_attention_heads=16,
    num_key_value_groups=1,
    image_size=336,
    patch_size=14,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
)
_THETA = 10_000.0


def to_model(config: Mapping[str, Any], keys: Collection[str]) -> ConfigDict:
    """The `model` section of a config.json."""
    del keys
    config = _DEFAULTS | config
    rope = config.get("rope_parameters") or {}
    if config["num_key_value_groups"] != 1 or rope.get("rope_theta", _THETA) != _THETA:
        raise UserError(
            "config.json: clipjax's MLCD has a key and a value for each head, and a rope_theta of 10000."
        )
    image = image_section(positions="none", rope="mlcd", **towers.vision(config))
    return model_section(
        image, kind="image_encoder", embed_dim=image.width, image_projection="none"
    )


def from_model(model: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config.json of a `model` section."""
    return dict(
        architectures=["MLCDVisionModel"],
        model_type=kind,
        num_key_value_groups=1,
        rope_parameters=dict(rope_type="axial", rope_theta=_THETA),
        **towers.vision_config(model["image"]),
    )


def fits(model: Mapping[str, Any]) -> bool:
    """Whether a model has such a tower, and nothing else."""
    return has_towers(model, "vit", None)


def table(model: Mapping[str, Any]) -> KeyTable:
    """Keys of a model."""
    del model
    source = "vision_model"
    return KeyTable(
        "an MLCD of transformers",
        [
            Row(f"{source}.class_pos_emb", "image/rope_class"),
            Row(f"{source}.embeddings.class_embedding", "image/class_token", DROP_1),
            Row(f"{source}.embeddings.patch_embedding.weight", "image/stem/kernel", CONV),
            *norm(f"{source}.pre_layrnorm", "image/norm_pre"),
            *hugging_face_block(f"{source}.encoder.layers.{{i}}", IMAGE_BLOCKS),
            *norm(f"{source}.post_layernorm", "image/norm_post"),
        ],
        droppable=[f"{source}.embeddings.position_ids"],
    )
