"""Images of any shape as a number of patches (NaFlex of SigLIP 2): resized to as many patches as fit, not cropped.

The size is that of transformers' `get_image_size_for_max_num_patches`, and so of big_vision's NaFlex, which has the
same search: the two sides keep their ratio up to the rounding to whole patches.
"""

import math

import numpy as np
from PIL import Image

from clipjax.data.images import INTERPOLATIONS

# The search stops when the scale is known this well; the result depends on it, so it is transformers'.
_PRECISION = 1e-5
_LARGEST_SCALE = 100.0


def naflex_size(height: int, width: int, patch: int, max_patches: int) -> tuple[int, int]:
    """(rows, columns) of patches that an image of height × width becomes; their product is at most `max_patches`."""

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch)) for side in (height, width))
        return rows, columns

    low, high = _PRECISION / 10, _LARGEST_SCALE
    while high - low >= _PRECISION:
        middle = (low + high) / 2
        if math.prod(grid(middle)) <= max_patches:
            low = middle
        else:
            high = middle
    return grid(low)


def patches(
    image: Image.Image | np.ndarray, patch: int, max_patches: int, interpolation: str = "bilinear"
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as patches.

    Args:
      image: RGB, or uint8 [H, W, 3].
      patch: side of a patch in pixels.
      max_patches: number of rows of the result; those beyond the image's own are zero.
      interpolation: "bilinear" (SigLIP 2), "bicubic" or "lanczos", with Pillow's antialiasing.

    Returns:
      uint8 [max_patches, patch * patch * 3], each patch flattened by row, column and channel, and the patches' (rows,
      columns); patch (r, c) is at r * columns + c.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    rows, columns = naflex_size(image.height, image.width, patch, max_patches)
    resized = image.resize((columns * patch, rows * patch), INTERPOLATIONS[interpolation])
    blocks = np.asarray(resized).reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
    found = np.zeros((max_patches, patch * patch * 3), np.uint8)
    found[: rows * columns] = blocks.reshape(rows * columns, -1)
    return found, (rows, columns)
