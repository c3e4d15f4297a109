"""timm's vision transformers: a directory with timm's config.json, or a state dict with --model=NAME."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.convert import timm_keys
from clipjax.convert.express import check_expressed, check_named
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.tables import KeyTable
from clipjax.convert.timm_models import arguments, image_tower
from clipjax.data.presets import PRESETS, Preset
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError
from clipjax.models import model_section

NAME = "timm"

# DINOv2's own files predate timm: the token of masked patches is of the pretraining only.
_DROPPABLE = ("mask_token",)


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
    args = arguments(name, config.get("model_args"))
    if "global_pool" in config:
        args["global_pool"] = config["global_pool"]
    model = _model(args, weights.tensors)
    notes: tuple[str, ...] = ()
    if "pretrained_cfg" in config:
        preset = _preset(config["pretrained_cfg"])
    else:
        preset = PRESETS["inception"]
        notes = ("There is no config.json; pictures are prepared as timm's ViTs mostly are.",)
    hints = {"timm": name, "timm_args": args, "pretrained_cfg": config.get("pretrained_cfg", {})}
    return Description(model, _table(args), preset, None, "bicubic_antialias", notes, hints)


def _model(args: Mapping[str, Any], tensors: Mapping[str, Any]) -> ConfigDict:
    head = "head.weight" in tensors
    return model_section(
        image_tower(args),
        kind="image_encoder",
        embed_dim=tensors["head.weight"].shape[0] if head else args["embed_dim"],
        image_projection="bias" if head else "none",
    )


def _table(args: Mapping[str, Any]) -> KeyTable:
    return KeyTable("a ViT of timm", timm_keys.rows(args), _DROPPABLE, tuple(timm_keys.zeros(args)))


def _preset(config: Mapping[str, Any]) -> Preset:
    """timm resizes to size / crop_pct and crops; clipjax resizes to what it crops."""
    interpolation = config.get("interpolation", "bicubic")
    resize = "squash" if config.get("crop_mode") == "squash" else "shortest"
    return Preset(resize, interpolation, tuple(config["mean"]), tuple(config["std"]))


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A directory that `timm.create_model("local-dir:DIR")` loads."""
    del tokenizer
    model = config.model
    check_named(model, "timm", image=("vit",))
    if "timm" not in hints:
        raise UserError(
            "timm builds a model by its name, and this one was not read from timm's format; write it for open_clip or "
            "transformers."
        )
    args = dict(hints["timm_args"]) | dict(img_size=model.image.size)
    table = _table(args)
    understood = model_section(
        image_tower(args),
        kind="image_encoder",
        embed_dim=model.embed_dim,
        image_projection=model.image_projection,
    )
    check_expressed(model, understood, f"timm's {hints['timm']!r}")
    head = model.embed_dim if model.image_projection == "bias" else 0
    preset = Preset.of(config)
    pretrained = dict(hints.get("pretrained_cfg", {})) | dict(
        input_size=[3, model.image.size, model.image.size],
        mean=list(preset.mean),
        std=list(preset.std),
        interpolation=preset.interpolation,
        num_classes=head,
    )
    described = dict(
        architecture=hints["timm"].partition(".")[0],
        num_classes=head,
        num_features=model.image.width,
        global_pool=args["global_pool"],
        model_args=_model_args(hints["timm"], args),
        pretrained_cfg=pretrained,
    )
    files = {"config.json": (json.dumps(described, indent=2) + "\n").encode()}
    return Export(table, "model.safetensors", files, {"format": "pt"})


def _model_args(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """What the name alone does not say."""
    return {key: value for key, value in args.items() if value != arguments(name)[key]}
