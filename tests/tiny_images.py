"""Encoded images for tests."""

import io

import numpy as np
from PIL import Image


def jpeg(image, quality=90):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def noise(seed, size=(96, 72)):
    """A smooth image."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
