"""SigLIP and SigLIP 2 of fixed resolution in transformers (model type `siglip`), and NaFlex (`siglip2`)."""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.convert.blocks import (
    IMAGE_BLOCKS,
    TEXT_BLOCKS,
    hugging_face_block,
    linear,
    map_pool,
    norm,
)
from clipjax.convert.express import has_towers
from clipjax.convert.formats.hugging_face import towers
from clipjax.convert.layouts import CONV, ONE, PATCHES, with_shape
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS
from clipjax.errors import UserError
from clipjax.models import image_section, model_section, text_section

MODEL_TYPES = (
    "siglip",
    "siglip_vision_model",
    "siglip_text_model",
    "siglip2",
    "siglip2_vision_model",
    "siglip2_text_model",
)
WRITTEN = ("siglip", "siglip2")
PRESET = PRESETS["siglip"]
PREFIXES = ("vision_model.", "text_model.")

_ENCODER = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
_VISION = _ENCODER | dict(image_size=224, patch_size=16, num_patches=256, vision_use_head=True)
_TEXT = _ENCODER | dict(max_position_embeddings=64, vocab_size=32000, projection_size=None)

_GRID = with_shape(lambda x: x.reshape(-1, x.shape[-1]))  # [G * G, W] -> [G, G, W]


def to_model(config: Mapping[str, Any], keys: Collection[str]) -> ConfigDict:
    """The `model` section of a config.json."""
    del keys
    kind, naflex = config["model_type"], config["model_type"].startswith("siglip2")
    sections: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if not kind.endswith("text_model"):
        image = _VISION | (config.get("vision_config") or config)
        if not image["vision_use_head"]:
            raise UserError(
                "config.json: vision_use_head is false, but clipjax needs the head of a SigLIP."
            )
        patch = towers.square(image["patch_size"], "patch_size")
        how = {"positions": "naflex"} if naflex else {}
        if naflex:
            image["image_size"] = round(image["num_patches"] ** 0.5) * patch
        sections["image"] = image_section(
            pool="map", pre_norm=False, patch_bias=True, **how, **towers.vision(image)
        )
        settings |= dict(embed_dim=image["hidden_size"], image_projection="none")
    if not kind.endswith("vision_model"):
        text = _TEXT | (config.get("text_config") or config)
        sections["text"] = text_section(attention="full", pool="last", **towers.text(text))
        settings |= dict(
            embed_dim=text["projection_size"] or text["hidden_size"], text_projection="bias"
        )
    if len(sections) == 2:
        settings |= dict(init_scale=10.0, init_bias=-10.0)
    else:
        settings["kind"] = "image_encoder" if "image" in sections else "text_encoder"
    return model_section(**sections, **settings)


def from_model(model: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config.json of a `model` section, for `model_type` "siglip" or "siglip2" as `kind`."""
    name = kind.title()
    parts: dict[str, Any] = {}
    if "image" in model:
        image = towers.vision_config(model["image"])
        if kind == "siglip2":
            image["num_patches"] = (image.pop("image_size") // image["patch_size"]) ** 2
        parts["vision_config"] = image
    if "text" in model:
        parts["text_config"] = towers.text_config(model["text"])
        parts["text_config"]["projection_size"] = model["embed_dim"]
    if len(parts) == 2:
        return dict(architectures=[f"{name}Model"], model_type=kind) | parts
    part = "vision" if "image" in model else "text"
    return (
        dict(architectures=[f"{name}{part.title()}Model"], model_type=f"{kind}_{part}_model")
        | parts[f"{part}_config"]
    )


def fits(model: Mapping[str, Any]) -> bool:
    """Whether a model has such towers."""
    return has_towers(model, "vit", "transformer")


def table(model: Mapping[str, Any]) -> KeyTable:
    """Keys of a model; rows of a tower that it does not have take no part."""
    image, text = "vision_model", "text_model"
    naflex = "image" in model and model["image"]["positions"] == "naflex"
    patches = PATCHES if naflex else CONV
    positions = (_GRID,) if naflex else ()
    return KeyTable(
        "a SigLIP of transformers",
        [
            Row(f"{image}.embeddings.patch_embedding.weight", "image/stem/kernel", patches),
            Row(f"{image}.embeddings.patch_embedding.bias", "image/stem/bias"),
            Row(
                f"{image}.embeddings.position_embedding.weight",
                "image/position_embedding",
                *positions,
            ),
            *hugging_face_block(f"{image}.encoder.layers.{{i}}", IMAGE_BLOCKS),
            *norm(f"{image}.post_layernorm", "image/norm_post"),
            *map_pool(f"{image}.head", "image/pool"),
            Row(f"{text}.embeddings.token_embedding.weight", "text/token_embedding"),
            Row(f"{text}.embeddings.position_embedding.weight", "text/position_embedding"),
            *hugging_face_block(f"{text}.encoder.layers.{{i}}", TEXT_BLOCKS),
            *norm(f"{text}.final_layer_norm", "text/norm_post"),
            *linear(f"{text}.head", "text_head/out"),
            Row("logit_scale", "logit_scale", ONE),
            Row("logit_bias", "logit_bias", ONE),
        ],
        droppable=[f"{tower}.embeddings.position_ids" for tower in (image, text)],  # 0, 1, 2, ...
    )
