"""Decoding images, and fitting them into the model's square frame.

Nothing here is random. Images that cannot be used raise `BadRecord` with a short reason, which the pipeline counts.
"""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError
from clipjax.registry import nearest

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZES = ("shortest", "squash", "longest")

# Above this many pixels an image is refused before it is decoded (a decompression bomb, or a mistake).
MAX_PIXELS = 100_000_000
TOO_LARGE = f"image has more than {MAX_PIXELS:,} pixels"


def decode(image: Any) -> Image.Image:
    """Encoded bytes, a uint8 array [H,W,3|4] or a PIL image -> a PIL image in mode RGB or RGBA, upright.

    Raises:
      BadRecord: empty, truncated, not an image, more than `MAX_PIXELS`, or an array of another shape or dtype.
    """
    opened = open_image(image)
    if isinstance(image, np.ndarray):
        return opened
    image = opened
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        transparent = image.mode in ("LA", "PA", "La") or "transparency" in image.info
        if image.mode == "RGBA" or (image.mode == "RGB" and not transparent):
            return image
        if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would cut at 255
            grey = (np.clip(np.asarray(image, np.int64), 0, 65535) + 128) // 257
            image = Image.fromarray(grey.astype(np.uint8))
        return image.convert("RGBA" if transparent else "RGB")
    except Exception as error:
        raise BadRecord("image is truncated or broken") from error


def open_image(image: Any) -> Image.Image:
    """The same, of which only the header has been read: any mode, and as it is stored, upright or not.

    Raises:
      BadRecord: as `decode`, but for what is truncated or broken.
    """
    if image is None:
        raise BadRecord("there is no image")
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] not in (3, 4)
            or 0 in image.shape
        ):
            raise BadRecord("image array is not uint8 [H,W,3|4]")
        return Image.fromarray(image)
    if isinstance(image, bytes | bytearray | memoryview):
        if not len(image):
            raise BadRecord("image has zero bytes")
        try:
            image = Image.open(io.BytesIO(image))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadRecord(TOO_LARGE) from error
        except Exception as error:
            raise BadRecord("image format not recognised") from error
    if not isinstance(image, Image.Image):
        raise BadRecord("image is neither bytes, array nor image")
    if image.width * image.height > MAX_PIXELS:
        raise BadRecord(TOO_LARGE)
    return image


def upright_size(image: Any) -> tuple[int, int]:
    """(width, height) of what `decode` makes of it, from the header alone.

    Raises:
      BadRecord: as `open_image`.
    """
    opened = open_image(image)
    if isinstance(image, np.ndarray):
        return opened.size
    try:
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception as error:  # hostile EXIF raises anything
        raise BadRecord("image is truncated or broken") from error
    return opened.size[::-1] if turned else opened.size


def flatten(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Puts a transparent image on a plain background; RGB images pass unchanged."""
    if image.mode == "RGB":
        return image
    base = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(base, image).convert("RGB")


def check_fit(resize: str, interpolation: str, crop_fraction: float = 1.0) -> None:
    """Refuses settings that `fit` does not have, with the nearest right name."""
    if resize == "naflex":
        raise UserError(
            "preprocess.resize='naflex' makes images of any shape, which can be embedded but not trained on; "
            f"for training choose one of {', '.join(map(repr, RESIZES))}."
        )
    if resize not in RESIZES:
        raise UserError(f"preprocess.resize cannot be {resize!r}{nearest(resize, RESIZES)}.")
    if interpolation not in INTERPOLATIONS:
        raise UserError(
            f"preprocess.interpolation cannot be {interpolation!r}{nearest(interpolation, INTERPOLATIONS)}."
        )
    if not 0.1 <= crop_fraction <= 1.0:
        raise UserError(f"preprocess.crop_fraction must be from 0.1 to 1, not {crop_fraction!r}.")
    if crop_fraction != 1.0 and resize != "shortest":
        raise UserError(
            f"preprocess.crop_fraction={crop_fraction!r} is for resize='shortest', not {resize!r}."
        )


def fit(
    image: Image.Image, size: int, resize: str, interpolation: str, crop_fraction: float = 1.0
) -> np.ndarray:
    """An RGB image of any size -> uint8 [size, size, 3].

    "shortest": the shorter side becomes `size`, the centre is cut out (CLIP); with a `crop_fraction` it becomes size /
    crop_fraction, of which that share is cut out (ImageNet's 224 of 256, DINOv2, timm). "squash": both sides become
    `size` (SigLIP). "longest": the longer side becomes `size`, the rest is filled with white.

    Raises:
      BadRecord: so long and thin that "shortest" would make more than `MAX_PIXELS` of it.
    """
    check_fit(resize, interpolation, crop_fraction)
    method = INTERPOLATIONS[interpolation]
    if resize == "squash":
        return np.asarray(image.resize((size, size), method))
    if not fits(image.size, size, resize, crop_fraction):
        raise BadRecord("image is too long and thin")
    width, height, left, top = place(image.size, size, resize, crop_fraction)
    if (width, height) != image.size:
        image = image.resize((width, height), method)
    if resize == "longest":
        base = Image.new("RGB", (size, size), (255, 255, 255))
        base.paste(image, (-left, -top))
        return np.asarray(base)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def fits(size: tuple[int, int], side: int, resize: str, crop_fraction: float = 1.0) -> bool:
    """Whether `fit` takes an image of (width, height): on the way to the frame it has at most `MAX_PIXELS`."""
    width, height, _, _ = place(size, side, resize, crop_fraction)
    return width * height <= MAX_PIXELS


def place(
    size: tuple[int, int], side: int, resize: str, crop_fraction: float = 1.0
) -> tuple[int, int, int, int]:
    """How `fit` makes a frame of an image of (width, height): its size in there, and the frame's left top corner."""
    if resize == "squash":
        return side, side, 0, 0
    if resize == "longest":
        # As open_clip resizes and pads: the shorter side rounded, the odd pixel on the right and below.
        width, height = (max(1, round(s / (max(size) / side))) for s in size)
        return width, height, -((side - width) // 2), -((side - height) // 2)
    resized = round(side / crop_fraction)
    width, height = (int(resized * s / min(size)) for s in size)
    # As torchvision's centre crop: half of the difference, rounded.
    return width, height, round((width - side) / 2), round((height - side) / 2)
