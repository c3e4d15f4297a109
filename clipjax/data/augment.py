"""Random changes of training pictures. All randomness comes from the generator that the caller hands in."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from clipjax.data.images import INTERPOLATIONS, flatten
from clipjax.errors import UserError
from clipjax.registry import nearest, wanted

BACKGROUNDS = ("white", "random")

# Luma weights of ITU-R BT.601, as PIL's conversion to grey.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def check_augment(settings: Mapping[str, Any]) -> None:
    """Refuses settings of `data.augment` that mean nothing.

    Raises:
      UserError: names the first of them.
    """
    if settings["background"] not in BACKGROUNDS:
        hint = nearest(settings["background"], BACKGROUNDS)
        raise UserError(f"data.augment.background cannot be {settings['background']!r}{hint}.")
    for name, most in {"crop_scale": 1.0, "crop_ratio": math.inf}.items():
        pair = settings[name]
        if (
            len(pair) != 2
            or any(map(wanted, (0.0, 0.0), pair))
            or not 0 < pair[0] <= pair[1] <= most
        ):
            at_most = "" if most == math.inf else f" of at most {most}"
            raise UserError(
                f"data.augment.{name} must be (low, high) above 0{at_most}, not {pair!r}."
            )
    limits = dict.fromkeys(("flip", "grayscale", "brightness", "contrast", "saturation"), 1.0)
    for name, most in (limits | {"hue": 0.5, "rotate": 180.0}).items():
        if not 0 <= settings[name] <= most:
            raise UserError(
                f"data.augment.{name} must be from 0 to {most:g}, not {settings[name]!r}."
            )


def augment(
    image: Image.Image,
    size: int,
    settings: Mapping[str, Any],
    interpolation: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """One random view of a picture, uint8 [size, size, 3].

    The order is: background, rotation, random resized crop, flip, colours. See `data.augment` in clipjax/defaults.py.
    """
    white = settings["background"] == "white"
    background = (255, 255, 255) if white else tuple(int(v) for v in rng.integers(0, 256, 3))
    image = flatten(image, background)
    if settings["rotate"]:
        angle = rng.uniform(-settings["rotate"], settings["rotate"])
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=background)
    box = random_crop(image.size, settings["crop_scale"], settings["crop_ratio"], rng)
    image = image.resize((size, size), INTERPOLATIONS[interpolation], box=box)
    pixels = np.asarray(image)
    if rng.random() < settings["flip"]:
        pixels = pixels[:, ::-1]
    return recolour(pixels, settings, rng)


def random_crop(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) whose share of the area and whose aspect ratio are drawn at random.

    The ratio is drawn log-uniformly, as torchvision's RandomResizedCrop does; where a box does not fit, its sides are
    cut to the picture's instead of drawing again.
    """
    width, height = size
    area = width * height * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w = min(math.sqrt(area * aspect), width)
    h = min(math.sqrt(area / aspect), height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, left + w, top + h


def recolour(
    pixels_HxWx3: np.ndarray, settings: Mapping[str, Any], rng: np.random.Generator
) -> np.ndarray:
    """Brightness, contrast, saturation, hue and grey in one affine map of the three channels.

    Each factor is drawn from [1 - s, 1 + s], the hue from [-h, h] turns. Composing the maps first and touching the
    pixels once costs a fraction of five passes.
    """
    strengths = [settings[name] for name in ("brightness", "contrast", "saturation")]
    gray = rng.random() < settings["grayscale"]
    if not any(strengths) and not settings["hue"] and not gray:
        return pixels_HxWx3
    brightness, contrast, saturation = (rng.uniform(1 - s, 1 + s) for s in strengths)
    pixels = pixels_HxWx3.astype(np.float32)
    matrix = _saturate(0.0 if gray else saturation) @ _rotate_hue(
        rng.uniform(-1, 1) * settings["hue"]
    )
    middle = float(pixels.mean(axis=(0, 1)) @ LUMA)
    matrix = (brightness * contrast * matrix).astype(np.float32)
    offset = np.float32(brightness * (1 - contrast) * middle)
    changed = pixels.reshape(-1, 3) @ matrix.T + offset
    return np.clip(changed + 0.5, 0, 255).astype(np.uint8).reshape(pixels_HxWx3.shape)


def _saturate(factor: float) -> np.ndarray:
    """Blend with grey: factor 0 is grey, 1 changes nothing."""
    return factor * np.eye(3) + (1 - factor) * np.tile(LUMA, (3, 1))


def _rotate_hue(turns: float) -> np.ndarray:
    """Rotation of RGB space about its grey diagonal (Rodrigues' formula)."""
    angle = 2 * math.pi * turns
    k = 1 / math.sqrt(3)
    cross = k * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)
