"""How pictures are prepared: the settings of well-known families, and of a checkpoint's own description.

A preset is what two sections of a config say together: `preprocess` (resize, interpolation) and the model's channel
statistics (mean, std). Training views use the interpolation and, with data.augment.crop="fit", the resize.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from clipjax.data.images import check_fit
from clipjax.errors import UserError
from clipjax.registry import nearest

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# Pillow's numbers, which Hugging Face's preprocessor_config.json holds.
_RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


class Preset(NamedTuple):
    """See the module; mean and std are of RGB in [0, 1]."""

    resize: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, config: ConfigDict) -> None:
        """Sets `preprocess` and the model's statistics of a run's config."""
        config.preprocess.update(resize=self.resize, interpolation=self.interpolation)
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
    """A checkpoint's preset and size, from its preprocessor_config.json (CLIP's and SigLIP's image processors).

    Raises:
      UserError: something in it that clipjax does not do.
    """
    what = "preprocessor_config.json"
    size, crop = config.get("size"), config.get("crop_size")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise UserError(f"{what} says {step} = false, which clipjax does not do.")
    if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise UserError(f"{what}: a rescale_factor of {config['rescale_factor']} is not supported.")
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
        if cropped != side:
            raise UserError(
                f"{what} resizes to {side} and crops to {cropped}; clipjax resizes to what it crops."
            )
    elif resize == "shortest":
        raise UserError(
            f"{what} resizes the shorter side and crops nothing: pictures of many sizes."
        )
    number = config.get("resample", 3)
    if number not in _RESAMPLE:
        raise UserError(f"{what}: the resample {number!r} is not supported.")
    return _checked(
        resize,
        _RESAMPLE[number],
        config.get("image_mean") or CLIP_MEAN,
        config.get("image_std") or CLIP_STD,
        what,
    ), side


def _checked(resize: str, interpolation: str, mean: Any, std: Any, what: str) -> Preset:
    check_fit(resize, interpolation)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise UserError(f"{what}: the {name} {values!r} must be three numbers.")
    return Preset(resize, interpolation, tuple(map(float, mean)), tuple(map(float, std)))


def _square(size: Any, what: str) -> int | None:
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        return int(size[0])
    if size is None or isinstance(size, int):
        return size
    raise UserError(f"{what} is {size!r}, but clipjax's pictures are square.")
