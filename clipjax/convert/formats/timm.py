"""timm's vision transformers: a directory with timm's config.json, or a state dict with --model=NAME.

DINOv2's own files, which timm's ViT grew to hold, are state dicts of this kind: --model=vit_base_patch14_dinov2.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipjax.convert import timm_keys, timm_models
from clipjax.convert.express import check_expressed, check_named
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.tables import KeyTable
from clipjax.data.presets import PRESETS, Preset
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError
from clipjax.models import model_section

NAME = "timm"

# Of DINOv2's own files: the token of masked patches, of the pretraining only.
_MASK = "mask_token"

# What clipjax calls a way to resize, and timm.
_CROPS = {"shortest": "center", "squash": "squash"}


def recognise(weights: Weights) -> bool:
    """A config.json with an architecture, or keys of a ViT of timm."""
    config = weights.json("config.json")
    if config is not None:
        return "architecture" in config
    keys = weights.tensors.keys()
    return {"patch_embed.proj.weight", "blocks.0.norm1.weight"} <= keys


def describe(weights: Weights, options: Options) -> Description:
    """See `formats.base.Format`."""
    config = weights.json("config.json") or {}
    name = options.model or config.get("architecture")
    if name is None:
        raise UserError(
            f"{str(weights.path)!r} does not say which of timm's models it is; add --model=NAME, such as "
            "vit_base_patch16_siglip_224."
        )
    args = timm_models.arguments(name, config.get("model_args"))
    if "global_pool" in config:
        args["global_pool"] = config["global_pool"]
    if _MASK in weights.tensors:
        # timm's ports with registers have added the class token's position to it.
        args |= dict(original=True, no_embed_class=False)
    model = _model(args, weights.tensors)
    notes: tuple[str, ...] = ()
    if "pretrained_cfg" in config:
        preset = _preset(config["pretrained_cfg"], model.image.size)
    else:
        preset = PRESETS["imagenet" if "dinov2" in name else "inception"]
        notes = ("There is no config.json; images are prepared as this family's mostly are.",)
    hints = {"timm": name, "timm_args": args, "pretrained_cfg": config.get("pretrained_cfg", {})}
    return Description(model, _table(args), preset, None, "bicubic_antialias", notes, hints)


def _model(args: Mapping[str, Any], tensors: Mapping[str, Any]) -> ConfigDict:
    head = "head.weight" in tensors
    return model_section(
        timm_models.image_tower(args),
        kind="image_encoder",
        embed_dim=tensors["head.weight"].shape[0] if head else args["embed_dim"],
        image_projection="bias" if head else "none",
    )


def _table(args: Mapping[str, Any]) -> KeyTable:
    written = {}
    if args["original"]:
        written = {_MASK: np.zeros((1, args["embed_dim"]), np.float32)}
    zeros = tuple(timm_keys.zeros(args))
    return KeyTable("a ViT of timm", timm_keys.rows(args), zeros=zeros, written=written)


def _preset(config: Mapping[str, Any], size: int) -> Preset:
    """How timm's `create_transform` prepares images of a `pretrained_cfg` at evaluation.

    Raises:
      UserError: in a way that clipjax does not have.
    """
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    if mode not in _CROPS.values() or (mode == "squash" and share != 1):
        raise UserError(f"config.json: crop_mode {mode!r} with crop_pct {share} is not supported.")
    return Preset(
        next(resize for resize, crop in _CROPS.items() if crop == mode),
        config.get("interpolation", "bicubic"),
        tuple(config["mean"]),
        tuple(config["std"]),
        size / math.floor(size / share),
    )


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A directory that `timm.create_model("local-dir:DIR")` loads."""
    del tokenizer
    model = config.model
    check_named(model, "timm", image=("vit",))
    name, args = _named(model, hints)
    args |= dict(img_size=model.image.size)
    table = _table(args)
    head = model.embed_dim if model.image_projection == "bias" else 0
    understood = model_section(
        timm_models.image_tower(args),
        kind="image_encoder",
        embed_dim=head or model.image.width,
        image_projection="bias" if head else "none",
    )
    check_expressed(model, understood, f"timm's {name!r}")
    if args["original"]:
        return Export(table, "model.safetensors")  # as it came: a state dict
    described = dict(
        architecture=name.partition(".")[0],
        num_classes=head,
        num_features=model.image.width,
        global_pool=args["global_pool"],
        model_args=_model_args(name, args),
        pretrained_cfg=_pretrained(config, hints, head),
    )
    files = {"config.json": (json.dumps(described, indent=2) + "\n").encode()}
    return Export(table, "model.safetensors", files, {"format": "pt"})


def _named(model: ConfigDict, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the architecture that a model came as, or of one that it is; and its arguments.

    Raises:
      UserError: timm has no such model by a name; what the nearest cannot express is named.
    """
    if "timm" in hints:
        return hints["timm"], dict(hints["timm_args"])
    name, wrong = timm_models.find(model.image)
    if wrong:
        raise UserError(
            f"timm builds a model by its name, and the nearest, {name!r}, cannot express {', '.join(wrong)}."
        )
    return name, timm_models.arguments(name)


def _pretrained(config: ConfigDict, hints: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """How timm prepares images.

    Raises:
      UserError: otherwise than this model's are prepared.
    """
    preset, size = Preset.of(config), config.model.image.size
    if preset.resize not in _CROPS:
        raise UserError(
            f"timm cannot express preprocess.resize = {preset.resize!r}; it has {' and '.join(map(repr, _CROPS))}."
        )
    described = dict(hints.get("pretrained_cfg", {})) | dict(
        input_size=[3, size, size],
        mean=list(preset.mean),
        std=list(preset.std),
        interpolation=preset.interpolation,
        crop_mode=_CROPS[preset.resize],
        num_classes=classes,
    )
    if "crop_pct" not in described or _preset(described, size) != preset:
        # timm rounds size / crop_pct down; a hair less of it makes sure of the whole number.
        share = preset.crop_fraction
        described["crop_pct"] = share if share == 1 else math.nextafter(share, 0.0)
    return described


def _model_args(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """What the name alone does not say."""
    return {key: value for key, value in args.items() if value != timm_models.arguments(name)[key]}
