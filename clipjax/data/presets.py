"""How images are prepared: the settings of well-known families, and of a checkpoint's own description.

A preset is what two sections of a config say together: `preprocess` (resize, interpolation) and the model's channel
statistics (mean, std). Training views use the interpolation and, with `augment.crop="fit"`, the resize. The resize
"naflex" (clipjax.data.naflex: images of any shape, for embedding only) is there beside those of `images.fit`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from clipjax.data.images import INTERPOLATIONS, check_fit
from clipjax.errors import UserError
from clipjax.registry import nearest

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# Pillow's numbers, which Hugging Face's preprocessor_config.json holds.
_RESAMPLE = {int(method): name for name, method in INTERPOLATIONS.items()}
_NUMBER = {name: number for number, name in _RESAMPLE.items()}

# What transformers calls the processors of whole models, by model type. Theirs decide how a directory is read.
_PROCESSORS = {
    "clip": "CLIPProcessor",
    "metaclip_2": "CLIPProcessor",
    "siglip": "SiglipProcessor",
    "siglip2": "Siglip2Processor",
}
_INTERPOLATIONS_OF_OPEN_CLIP = ("bicubic", "bilinear")


class Preset(NamedTuple):
    """See the module and `images.fit`; mean and std are of RGB in [0, 1]."""

    resize: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preset":
        """What a run's config says: the inverse of `apply`."""
        preprocess, model = config["preprocess"], config["model"]
        return cls(
            preprocess["resize"],
            preprocess["interpolation"],
            tuple(model["mean"]),
            tuple(model["std"]),
            preprocess.get("crop_fraction", 1.0),
        )

    def apply(self, config: ConfigDict) -> None:
        """Sets `preprocess` and the model's statistics of a run's config."""
        config.preprocess.update(
            resize=self.resize,
            interpolation=self.interpolation,
            crop_fraction=self.crop_fraction,
        )
        config.model.update(mean=self.mean, std=self.std)


PRESETS = {
    "clip": Preset(
        "shortest", "bicubic", CLIP_MEAN, CLIP_STD
    ),  # openai/CLIP, and open_clip's default
    "siglip": Preset("squash", "bicubic", HALF, HALF),  # open_clip's and transformers' ports
    "imagenet": Preset("shortest", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": Preset("shortest", "bicubic", HALF, HALF),  # CLIPA, EVA and others
    "veclip": Preset("shortest", "bilinear", CLIP_MEAN, CLIP_STD),
}


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
      UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preprocessing {name!r}{nearest(name, PRESETS)}.")
    return PRESETS[name]


def from_open_clip(config: Mapping[str, Any]) -> tuple[Preset, int | None]:
    """A checkpoint's preset and size, from the `preprocess_cfg` of its open_clip_config.json.

    Raises:
      UserError: something in it that clipjax does not do.
    """
    size = _square(config.get("size"), "preprocess_cfg.size")
    if config.get("mode", "RGB") != "RGB":
        raise UserError(f"preprocess_cfg.mode {config['mode']!r} is not supported; only RGB is.")
    fill = config.get("fill_color", 0)
    if config.get("resize_mode") == "longest" and set(np.ravel(fill).tolist()) != {255}:
        raise UserError(
            f"preprocess_cfg.fill_color {fill!r} is not supported with resize_mode 'longest'; clipjax fills with white "
            "(255)."
        )
    return _checked(
        config.get("resize_mode") or "shortest",
        config.get("interpolation") or "bicubic",
        config.get("mean") or CLIP_MEAN,
        config.get("std") or CLIP_STD,
        "preprocess_cfg",
    ), size


def from_hugging_face(config: Mapping[str, Any]) -> tuple[Preset, int | None]:
    """A checkpoint's preset and size, from its preprocessor_config.json.

    Those of CLIP, DINOv2 (`BitImageProcessor`), SigLIP, and SigLIP 2's NaFlex, whose size is None and whose number of
    patches is `naflex_patches(config)`.

    Raises:
      UserError: something in it that clipjax does not do.
    """
    what = "preprocessor_config.json"
    size, crop, fraction = config.get("size"), config.get("crop_size"), 1.0
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise UserError(f"{what} says {step} = false, which clipjax does not do.")
    if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise UserError(f"{what}: a rescale_factor of {config['rescale_factor']} is not supported.")
    if is_naflex(config):
        return _checked("naflex", _interpolation(config, 2, what), *_half(config), what), None
    if isinstance(size, Mapping) and "shortest_edge" in size:
        resize, side = "shortest", size["shortest_edge"]
    elif isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        resize, side = "squash", _square([size["height"], size["width"]], f"{what}: size")
    elif isinstance(size, int):
        resize, side = "shortest", size
    else:
        raise UserError(f"{what}: the size {size!r} is not supported.")
    if config.get("do_center_crop", resize == "shortest"):
        cropped = crop if crop is not None else side
        if isinstance(cropped, Mapping):
            cropped = _square([cropped["height"], cropped["width"]], f"{what}: crop_size")
        if cropped > side or (cropped != side and resize != "shortest"):
            raise UserError(
                f"{what} resizes to {side} and crops to {cropped}; clipjax crops less than it resizes to only where "
                "that is the shorter side."
            )
        fraction, side = cropped / side, cropped
    elif resize == "shortest":
        raise UserError(f"{what} resizes the shorter side and crops nothing: images of many sizes.")
    return _checked(
        resize,
        _interpolation(config, 3, what),
        config.get("image_mean") or CLIP_MEAN,
        config.get("image_std") or CLIP_STD,
        what,
        fraction,
    ), side


def is_naflex(config: Mapping[str, Any]) -> bool:
    """Whether a preprocessor_config.json is that of `Siglip2ImageProcessor`: images of any shape."""
    named = str(config.get("image_processor_type", ""))
    return named.startswith("Siglip2ImageProcessor") or "max_num_patches" in config


def naflex_patches(config: Mapping[str, Any]) -> tuple[int, int]:
    """(side of a patch in pixels, highest number of patches) of such a preprocessor_config.json."""
    return int(config.get("patch_size", 16)), int(config.get("max_num_patches", 256))


def to_open_clip(preset: Preset, size: int) -> dict[str, Any]:
    """The `preprocess_cfg` of an open_clip_config.json, for images of `size` px.

    Raises:
      UserError: a preset that open_clip does not have.
    """
    if preset.resize == "naflex":
        raise UserError("open_clip has no images of any shape (preprocess.resize='naflex').")
    if preset.interpolation not in _INTERPOLATIONS_OF_OPEN_CLIP:
        raise UserError(
            f"open_clip has no preprocess.interpolation={preset.interpolation!r}; it has "
            f"{' and '.join(map(repr, _INTERPOLATIONS_OF_OPEN_CLIP))}."
        )
    if preset.crop_fraction != 1.0:
        raise UserError(
            f"open_clip resizes to what it crops, and has no preprocess.crop_fraction={preset.crop_fraction:.4g}."
        )
    return {
        "size": [size, size],
        "mode": "RGB",
        "mean": list(preset.mean),
        "std": list(preset.std),
        "interpolation": preset.interpolation,
        "resize_mode": preset.resize,
        "fill_color": 255 if preset.resize == "longest" else 0,
    }


def to_hugging_face(
    preset: Preset,
    size: int,
    model_type: str,
    patch: int | None = None,
    max_patches: int | None = None,
) -> dict[str, Any]:
    """The preprocessor_config.json with which transformers' `AutoImageProcessor` prepares images as the preset does.

    Its Pillow backend gives the same pixels; where the crop leaves out an odd number of columns or rows, every second
    time one pixel aside, as it rounds halves down and torchvision to even. Its torchvision backend is a level off.
    `Siglip2Processor`, unlike `AutoImageProcessor`, takes patches of 16 px and at most 256 whatever the file says.

    Args:
      preset: how images are prepared.
      size: of the model's images in px; of its grid of positions with "naflex".
      model_type: of the config.json beside it.
      patch: side of a patch in px, for "naflex".
      max_patches: highest number of patches of an image, for "naflex"; those of the grid if it is None.

    Raises:
      UserError: the preset fits the longer side, which transformers' image processors do not do.
    """
    described: dict[str, Any]
    if preset.resize == "naflex":
        described = {
            "image_processor_type": "Siglip2ImageProcessor",
            "max_num_patches": max_patches or (size // patch) ** 2,
            "patch_size": patch,
        }
    elif preset.resize == "squash":
        described = {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": size, "width": size},
        }
    elif preset.resize == "shortest":
        dino = model_type.startswith("dinov2")
        described = {
            "image_processor_type": "BitImageProcessor" if dino else "CLIPImageProcessor",
            "size": {"shortest_edge": round(size / preset.crop_fraction)},
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
        }
    else:
        raise UserError(
            f"transformers has no image processor for preprocess.resize={preset.resize!r}; write open_clip's format, "
            "or choose 'shortest' or 'squash'."
        )
    described |= {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _NUMBER[preset.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preset.mean),
        "image_std": list(preset.std),
    }
    if model_type in _PROCESSORS:
        described["processor_class"] = _PROCESSORS[model_type]
    return described


def _interpolation(config: Mapping[str, Any], default: int, what: str) -> str:
    number = config.get("resample", default)
    if number not in _RESAMPLE:
        raise UserError(f"{what}: the resample {number!r} is not supported.")
    return _RESAMPLE[number]


def _half(config: Mapping[str, Any]) -> tuple[Any, Any]:
    return config.get("image_mean") or HALF, config.get("image_std") or HALF


def _checked(
    resize: str, interpolation: str, mean: Any, std: Any, what: str, crop_fraction: float = 1.0
) -> Preset:
    if resize != "naflex":
        check_fit(resize, interpolation, crop_fraction)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise UserError(f"{what}: the {name} {values!r} must be three numbers.")
    statistics = tuple(map(float, mean)), tuple(map(float, std))
    return Preset(resize, interpolation, *statistics, crop_fraction)


def _square(size: Any, what: str) -> int | None:
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        return int(size[0])
    if size is None or isinstance(size, int):
        return size
    raise UserError(f"{what} is {size!r}, but clipjax's images are square.")
