"""Random changes of training images. All randomness comes from the generator that the caller hands in."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from clipjax.data.encoded_image import EncodedImage
from clipjax.data.geometry import WHOLE, Geometry
from clipjax.data.images import place
from clipjax.data.resize import resize
from clipjax.errors import UserError
from clipjax.registry import nearest, wanted

# Every setting of `augment`, with its default.
DEFAULTS: dict[str, Any] = {
    "crop": "random",  # a random resized crop, or "fit": as preprocess.resize says
    "crop_scale": (0.9, 1.0),  # area of the random crop
    "crop_ratio": (0.75, 4 / 3),
    "flip": 0.0,
    "rotate": 0.0,  # degrees either way
    "jitter": 1.0,  # share of the views to which brightness, contrast, saturation and hue happen
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,  # turns either way
    "grayscale": 0.0,
    "blur": 0.0,  # share of the views that are blurred
    "blur_sigma": (0.1, 2.0),  # pixels of the view, drawn uniformly
    "solarize": 0.0,  # share of the views whose values from 128 are inverted
    "background": "white",  # under transparent images: white, or random
}
CHOICES = {"background": ("white", "random"), "crop": ("random", "fit")}

# Luma weights of ITU-R BT.601, as PIL's conversion to grey.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def check_augment(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All settings of `augment`: those given, and the defaults of the others.

    Args:
      settings: some of `DEFAULTS`.
      where: for the message, such as "config.data.features.image.augment".

    Raises:
      UserError: names the first setting that there is not, or that means nothing.
    """
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise UserError(f"{where} has no setting {name!r}{nearest(name, DEFAULTS)}.")
        words = wanted(DEFAULTS[name], value)
        if words:
            raise UserError(f"{where}.{name} must be {words}, not {value!r}.")
    settings = DEFAULTS | dict(settings)
    for name, choices in CHOICES.items():
        if settings[name] not in choices:
            hint = nearest(settings[name], choices)
            raise UserError(f"{where}.{name} cannot be {settings[name]!r}{hint}.")
    for name, most in {"crop_scale": 1.0, "crop_ratio": math.inf, "blur_sigma": math.inf}.items():
        pair = settings[name]
        if (
            len(pair) != 2
            or any(map(wanted, (0.0, 0.0), pair))
            or not 0 < pair[0] <= pair[1] <= most
        ):
            at_most = "" if most == math.inf else f" of at most {most}"
            raise UserError(f"{where}.{name} must be (low, high) above 0{at_most}, not {pair!r}.")
    shares = ("flip", "grayscale", "jitter", "blur", "solarize")
    strengths = ("brightness", "contrast", "saturation")
    limits = dict.fromkeys((*shares, *strengths), 1.0)
    for name, most in (limits | {"hue": 0.5, "rotate": 180.0}).items():
        if not 0 <= settings[name] <= most:
            raise UserError(f"{where}.{name} must be from 0 to {most:g}, not {settings[name]!r}.")
    return settings


def augment(
    encoded: EncodedImage,
    size: int,
    settings: Mapping[str, Any],
    fitting: Mapping[str, Any],
    rng: np.random.Generator,
) -> tuple[np.ndarray, Geometry]:
    """One random view of an image: uint8 [size, size, 3], and where its points went.

    The order is: background, rotation, crop, flip, colours, blur, solarisation.

    Args:
      image: decoded no finer than the view needs.
      size: side of the view.
      settings: all of `DEFAULTS`.
      fitting: the section `preprocess`: the interpolation, and what crop="fit" does.
      rng: all randomness.
    """
    white = settings["background"] == "white"
    background = (255, 255, 255) if white else tuple(int(v) for v in rng.integers(0, 256, 3))
    width, height = encoded.size
    geometry, pixels_HxWx3 = WHOLE, None
    if settings["rotate"]:
        angle = rng.uniform(-settings["rotate"], settings["rotate"])
        image = encoded.image(background)
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=background)
        geometry, pixels_HxWx3 = geometry.rotate(angle, encoded.size), np.asarray(image)
    if settings["crop"] == "random":
        box = random_crop(encoded.size, settings["crop_scale"], settings["crop_ratio"], rng)
    else:
        box = fit_box(encoded.size, size, fitting["resize"], fitting.get("crop_fraction", 1.0))
    left, top, right, bottom = box
    geometry = geometry.crop((left / width, top / height, right / width, bottom / height))
    if pixels_HxWx3 is None:
        scale = size / min(right - left, bottom - top)
        pixels_HxWx3 = encoded.pixels(scale, background)
    view = cut(pixels_HxWx3, encoded.size, box, size, fitting["interpolation"])
    if rng.random() < settings["flip"]:
        view, geometry = view[:, ::-1], geometry.flip()
    view = recolour(view, settings, rng)
    # Nothing is drawn for what is off, so that its being there changes no other draw.
    if settings["blur"] and rng.random() < settings["blur"]:
        blur = ImageFilter.GaussianBlur(rng.uniform(*settings["blur_sigma"]))
        view = np.asarray(Image.fromarray(np.ascontiguousarray(view)).filter(blur))
    if settings["solarize"] and rng.random() < settings["solarize"]:
        view = np.where(view < 128, view, 255 - view)
    return view, geometry


def fit_box(
    size: tuple[int, int], side: int, resize: str, crop_fraction: float = 1.0
) -> tuple[float, float, float, float]:
    """The box that `images.fit` shows, in the image's pixels; it may reach beyond the image."""
    width, height, left, top = place(size, side, resize, crop_fraction)
    across, down = size[0] / width, size[1] / height
    return left * across, top * down, (left + side) * across, (top + side) * down


def fit_geometry(
    size: tuple[int, int], side: int, resize: str, crop_fraction: float = 1.0
) -> Geometry:
    """Where the points of an image of (width, height) pixels lie in the frame that `images.fit` makes of it."""
    left, top, right, bottom = fit_box(size, side, resize, crop_fraction)
    width, height = size
    return WHOLE.crop((left / width, top / height, right / width, bottom / height))


def cut(
    pixels_HxWx3: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    side: int,
    interpolation: str,
) -> np.ndarray:
    """The part of an image in a box, uint8 [side, side, 3]; white where the box reaches beyond the image.

    Args:
      pixels_HxWx3: the image, possibly decoded smaller.
      size: (width, height) that the box refers to.
      box: left, top, right, bottom.
      side: of the result.
      interpolation: see `resize`.
    """
    height, width = pixels_HxWx3.shape[:2]
    across, down = width / size[0], height / size[1]
    left, top, right, bottom = box
    if left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]:
        scaled = (left * across, top * down, right * across, bottom * down)
        return resize(pixels_HxWx3, scaled, (side, side), interpolation)
    # Where the image lies in the frame, in whole pixels.
    x1, x2 = (round((x - left) / (right - left) * side) for x in (0, size[0]))
    y1, y2 = (round((y - top) / (bottom - top) * side) for y in (0, size[1]))
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    frame = np.full((side, side, 3), 255, np.uint8)
    inner = resize(pixels_HxWx3, (0, 0, width, height), (x2 - x1, y2 - y1), interpolation)
    frame[y1:y2, x1:x2] = inner[: side - y1, : side - x1]
    return frame


def random_crop(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) whose share of the area and whose aspect ratio are drawn at random.

    The ratio is drawn log-uniformly, as torchvision's RandomResizedCrop does; where a box does not fit, its sides are
    cut to the image's instead of drawing again.
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
    hue = settings["hue"]
    gray = rng.random() < settings["grayscale"]
    if settings["jitter"] < 1 and rng.random() >= settings["jitter"]:
        strengths, hue = [0.0] * 3, 0.0
    if not any(strengths) and not hue and not gray:
        return pixels_HxWx3
    brightness, contrast, saturation = (rng.uniform(1 - s, 1 + s) for s in strengths)
    pixels = pixels_HxWx3.astype(np.float32)
    matrix = _saturate(0.0 if gray else saturation) @ _rotate_hue(rng.uniform(-1, 1) * hue)
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
