"""An image whose size is known before it is decoded, so that no more of it is decoded than a training view needs.

libjpeg-turbo can leave out whole frequencies, and so decodes to an eighth, a quarter or a half of the size in less time
than the whole (to other eighths as well, but in code without SIMD, which takes longer than the whole).

Everything that its binding does not take (other formats, CMYK, EXIF rotation, damage that only a warning tells) goes
to Pillow, which alone decides what is broken; so the same files are read with and without scaling.
"""

import math
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from clipjax.data.bad import BadRecord
from clipjax.data.images import MAX_PIXELS, TOO_LARGE, decode, flatten

SCALES = (1 / 8, 1 / 4, 1 / 2)

_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\x00\x00"
_HEADER = 1 << 16  # an EXIF segment lies within the first 64 kB


class EncodedImage:
    """An image of a record.

    Args:
      image: encoded bytes, a uint8 array [H,W,3|4], or a PIL image.

    Attributes:
      size: (width, height), upright.

    Raises:
      BadRecord: see `images.decode`.
    """

    def __init__(self, image: Any):
        self._jpeg: bytes | None = None
        self._decoded: Image.Image | None = None
        header = _header(image)
        if header is not None:
            self._jpeg, self.size = image, header
        else:
            self._decoded = decode(image)
            self.size = self._decoded.size

    def pixels(
        self, scale: float = 1.0, background: tuple[int, int, int] = (255, 255, 255)
    ) -> np.ndarray:
        """uint8 [h,w,3], at least `scale` times as large as the image, and at most as large.

        Args:
          scale: the smallest that will do; 1 and more is the whole image.
          background: what lies under a transparent image.

        Raises:
          BadRecord: truncated or broken.
        """
        if self._jpeg is not None:
            share = next((f for f in SCALES if f >= scale), 1.0)
            width, height = (math.ceil(s * share) for s in self.size)
            try:
                return simplejpeg.decode_jpeg(
                    self._jpeg, "RGB", min_width=width, min_height=height, strict=True
                )
            except ValueError:
                pass
        return np.asarray(self.image(background))

    def image(self, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
        """The whole image, mode RGB.

        Raises:
          BadRecord: truncated or broken.
        """
        if self._decoded is None:
            self._decoded = decode(self._jpeg)
        return flatten(self._decoded, background)


def _header(image: Any) -> tuple[int, int] | None:
    """(width, height) of a JPEG that libjpeg-turbo decodes to RGB as it should be shown; None: ask Pillow."""
    if not isinstance(image, bytes) or not image.startswith(_JPEG):
        return None
    if image.find(_EXIF, 0, _HEADER) >= 0:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray", "RGB"):
        return None
    if width * height > MAX_PIXELS:
        raise BadRecord(TOO_LARGE)
    return width, height
