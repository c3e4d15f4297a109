"""A `model` section as the `model_cfg` of open_clip_config.json, the inverse of `open_clip_config`."""

import math
from collections.abc import Mapping
from typing import Any

from clipjax.convert import timm_models
from clipjax.convert.open_clip_config import HF_PROJECTIONS, POOLERS
from clipjax.errors import UserError


def from_model(model: Mapping[str, Any], hints: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `model_cfg` of a `model` section; `hints` is what the checkpoint said of itself when it was read.

    Raises:
      UserError: a text tower that open_clip finds by a name which is not known, or no timm model with such a trunk.
    """
    said = dict((hints or {}).get("open_clip", {}))
    quick = model["text"].get("activation") == "quick_gelu" or (
        model["image"].get("activation") == "quick_gelu"
    )
    config: dict[str, Any] = dict(embed_dim=model["embed_dim"])
    config["vision_cfg"] = _vision_cfg(model, dict(said.get("vision_cfg", {})))
    config["text_cfg"] = _text_cfg(model, dict(said.get("text_cfg", {})))
    if quick:
        config["quick_gelu"] = True
    if model.get("init_bias") is not None:
        config["init_logit_bias"] = model["init_bias"]
    if said.get("nonscalar_logit_scale"):
        config["nonscalar_logit_scale"] = True
    text = config["text_cfg"]
    wanted = text.get("embed_cls") or text.get("proj_bias") or "hf_model_name" in text
    if said.get("custom_text", bool(wanted or config["vision_cfg"].get("timm_model_name"))):
        config["custom_text"] = True
    return config


def _ratio(width: int, ratio: float) -> float:
    """A ratio of which open_clip's int(width * ratio) makes our MLP's width."""
    hidden = round(width * ratio)
    short = round(hidden / width, 4)
    for candidate in (short, hidden / width):
        if int(width * candidate) == hidden:
            return candidate
    return math.nextafter(hidden / width, math.inf)


def _how(tower: Mapping[str, Any]) -> dict[str, Any]:
    """Activation and epsilon, where they are not open_clip's own."""
    how: dict[str, Any] = {}
    if tower["activation"] == "gelu_tanh":
        how["act_kwargs"] = {"approximate": "tanh"}
    if tower["eps"] != 1e-5:
        how["norm_kwargs"] = {"eps": tower["eps"]}
    if tower["layer_scale"] is not None:
        how["ls_init_value"] = tower["layer_scale"]
    ratio = _ratio(tower["width"], tower["mlp_ratio"])
    return how | ({"mlp_ratio": ratio} if ratio != 4.0 else {})


def _vision_cfg(model: Mapping[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    image = model["image"]
    if image["kind"] == "resnet":
        heads = image["heads"] or image["width"] * 32 // 64
        config: dict[str, Any] = dict(
            image_size=image["size"],
            layers=list(image["layers"]),
            width=image["width"],
            patch_size=None,
        )
        head_width = image["width"] * 32 // heads
        return config | ({"head_width": head_width} if head_width != 64 else {})
    plain = image["pool"] in ("class", "average", "attention") and image["mlp"] == "mlp"
    if said.get("timm_model_name") or image["rope"] or image["registers"] or not plain:
        return _trunk_cfg(model, said)
    config = dict(
        image_size=image["size"],
        layers=image["depth"],
        width=image["width"],
        patch_size=image["patch"],
    )
    head_width = image["width"] // image["heads"]
    if head_width != 64:
        config["head_width"] = head_width
    if not image["pre_norm"]:
        config["no_ln_pre"] = True
    if image["pool"] == "average":
        config["pool_type"] = "avg"
    if image["pool"] == "attention":
        config |= dict(
            attentional_pool=True,
            attn_pooler_queries=image["pool_queries"],
            attn_pooler_heads=image["pool_heads"] or image["heads"],
        )
    if image["final_norm"] == "pooled":
        config["final_ln_after_pool"] = True
    return config | _how(image)


def _trunk_cfg(model: Mapping[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    image = model["image"]
    name = said.get("timm_model_name")
    if name is None or timm_models.arguments(name)["img_size"] != image["size"]:
        name, wrong = timm_models.find(image)
        if wrong:
            raise UserError(
                f"open_clip has such an image tower only as a model of timm, and the nearest, {name!r}, cannot express "
                f"{', '.join(wrong)}."
            )
    proj = {"none": "none", "bias": None, "linear": "linear"}.get(model["image_projection"])
    if said.get("timm_proj") and model["image_projection"] == "bias":
        proj = said["timm_proj"]
    pools = {"class": "token", "average": "avg", "map": "map"}
    config = dict(
        image_size=image["size"],
        timm_model_name=name,
        timm_model_pretrained=False,
        timm_pool=pools[image["pool"]],
        timm_proj=proj,
    )
    return config | ({"timm_proj_bias": True} if said.get("timm_proj_bias") else {})


def _text_cfg(model: Mapping[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    text = model["text"]
    tokenizer = {
        k: v
        for k, v in said.items()
        if k in ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
    }
    if text["kind"] == "bert":
        if "hf_model_name" not in said:
            raise UserError(
                "open_clip finds the text tower of model.text.kind = 'bert' by its name in transformers, and this "
                "model has none, as it was not read from open_clip's format."
            )
        pooler = next(name for name, pool in POOLERS.items() if pool == text["pool"])
        proj = {ours: name for name, ours in HF_PROJECTIONS.items()}
        return tokenizer | dict(
            hf_model_name=said["hf_model_name"],
            hf_pooler_type=pooler,
            hf_proj_type=proj.get(model["text_projection"]),
            context_length=text["length"],
        )
    config = tokenizer | dict(
        context_length=text["length"],
        vocab_size=text["vocab_size"],
        width=text["width"],
        heads=text["heads"],
        layers=text["depth"],
    )
    if text["attention"] == "full":
        config["no_causal_mask"] = True
    if text["class_token"]:
        config["embed_cls"] = True
        config |= {"pad_id": text["pad_id"]} if text["pad_id"] else {}
    elif text["pool"] in ("last", "first"):
        config["pool_type"] = text["pool"]
    elif text["end_token"] != text["vocab_size"] - 1:
        config |= dict(pool_type="eos", eos_id=text["end_token"])
    if model["text_projection"] == "none":
        config["proj_type"] = "none"
    elif model["text_projection"] == "bias":
        config["proj_bias"] = True
    return config | _how(text)
