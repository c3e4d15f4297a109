"""CLIP and MetaCLIP 2 in transformers, both towers or one of them.

Models: OpenAI's, LAION's, MetaCLIP's, DFN's and MLCD's L/14 and B/32. `hidden_act` in config.json says which GELU.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.convert.blocks import IMAGE_BLOCKS, TEXT_BLOCKS, hugging_face_block, linear, norm
from clipjax.convert.express import has_towers
from clipjax.convert.formats.hugging_face import towers
from clipjax.convert.layouts import CONV, DROP_1
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS
from clipjax.models import image_section, model_section, text_section

MODEL_TYPES = (
    "clip",
    "clip_vision_model",
    "clip_text_model",
    "metaclip_2",
    "metaclip_2_vision_model",
    "metaclip_2_text_model",
)
WRITTEN = ("clip", "metaclip_2")
PRESET = PRESETS["clip"]
PREFIXES = ("vision_model.", "text_model.")
OF_IMAGES, OF_TEXTS = "visual_projection.weight", "text_projection.weight"

# What transformers takes where config.json says nothing (its files leave out what is as by default).
_ENCODER = dict(num_hidden_layers=12, hidden_act="quick_gelu", layer_norm_eps=1e-5)
_VISION = _ENCODER | dict(
    hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224, patch_size=32
)
_TEXT = _ENCODER | dict(
    hidden_size=512,
    intermediate_size=2048,
    num_attention_heads=8,
    max_position_embeddings=77,
    vocab_size=49408,
    eos_token_id=49407,
)
_PROJECTION = dict(projection_dim=512)

# CLIP's configs had this wrong id for years; transformers then takes the highest id of a text, which is its last.
_LEGACY_END = 2


def to_model(config: Mapping[str, Any], keys: Collection[str]) -> ConfigDict:
    """The `model` section of a config.json; `keys` tell whether single towers have a projection."""
    kind, meta = config["model_type"], config["model_type"].startswith("metaclip_2")
    image = text = None
    if not kind.endswith("text_model"):
        image = _VISION | _PROJECTION | (config.get("vision_config") or config)
    if not kind.endswith("vision_model"):
        text = _TEXT | _PROJECTION | (config.get("text_config") or config)
    shared = config.get("projection_dim", _PROJECTION["projection_dim"])
    sections: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if image is not None:
        sections["image"] = image_section(**towers.vision(image))
        settings["image_projection"] = "linear" if OF_IMAGES in keys else "none"
        width = image["projection_dim"] if text is None else shared
        settings["embed_dim"] = width if OF_IMAGES in keys else image["hidden_size"]
    if text is not None:
        end = text["eos_token_id"]
        if end == _LEGACY_END and not meta:
            end = text["vocab_size"] - 1
        sections["text"] = text_section(end_token=end, **towers.text(text))
        settings["text_projection"] = "linear" if OF_TEXTS in keys else "none"
        width = text["projection_dim"] if image is None else shared
        settings["embed_dim"] = width if OF_TEXTS in keys else text["hidden_size"]
    if image is None or text is None:
        settings["kind"] = "image_encoder" if text is None else "text_encoder"
    return model_section(**sections, **settings)


def from_model(model: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config.json of a `model` section, for `model_type` "clip" or "metaclip_2" as `kind`."""
    name = {"clip": "CLIP", "metaclip_2": "MetaClip2"}[kind]
    shared = dict(projection_dim=model["embed_dim"])
    parts: dict[str, Any] = {}
    if "image" in model:
        parts["vision_config"] = towers.vision_config(model["image"]) | shared
    if "text" in model:
        parts["text_config"] = towers.text_config(model["text"]) | shared
        parts["text_config"]["eos_token_id"] = model["text"]["end_token"]
    if len(parts) == 2:
        return dict(architectures=[f"{name}Model"], model_type=kind) | shared | parts
    part = "vision" if "image" in model else "text"
    tower = "image" if part == "vision" else "text"
    projected = "WithProjection" if model[f"{tower}_projection"] == "linear" else ""
    return (
        dict(
            architectures=[f"{name}{part.title()}Model{projected}"],
            model_type=f"{kind}_{part}_model",
        )
        | parts[f"{part}_config"]
    )


def fits(model: Mapping[str, Any]) -> bool:
    """Whether a model has such towers."""
    return has_towers(model, "vit", "transformer")


def table(model: Mapping[str, Any]) -> KeyTable:
    """Keys of a model; rows of a tower that it does not have take no part."""
    del model
    image, text = "vision_model", "text_model"
    return KeyTable(
        "a CLIP of transformers",
        [
            Row(f"{image}.embeddings.class_embedding", "image/class_token", DROP_1),
            Row(f"{image}.embeddings.patch_embedding.weight", "image/stem/kernel", CONV),
            Row(f"{image}.embeddings.position_embedding.weight", "image/position_embedding"),
            *norm(f"{image}.pre_layrnorm", "image/norm_pre"),  # transformers' spelling
            *hugging_face_block(f"{image}.encoder.layers.{{i}}", IMAGE_BLOCKS),
            *norm(f"{image}.post_layernorm", "image/norm_post"),
            *linear("visual_projection", "image_head/out"),
            Row(f"{text}.embeddings.token_embedding.weight", "text/token_embedding"),
            Row(f"{text}.embeddings.position_embedding.weight", "text/position_embedding"),
            *hugging_face_block(f"{text}.encoder.layers.{{i}}", TEXT_BLOCKS),
            *norm(f"{text}.final_layer_norm", "text/norm_post"),
            *linear("text_projection", "text_head/out"),
            Row("logit_scale", "logit_scale"),
        ],
        droppable=[f"{tower}.embeddings.position_ids" for tower in (image, text)],  # 0, 1, 2, ...
    )
