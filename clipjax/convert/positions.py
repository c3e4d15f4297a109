"""Other resolutions and text lengths: position tables resampled as the library that the weights came from does it.

Libraries differ here, and the difference costs accuracy, so a checkpoint's format says which way is its own:

| method | who | what |
|---|---|---|
| `bicubic_antialias` | open_clip, timm | torch's `interpolate(mode="bicubic", antialias=True)`: a = -0.5 |
| `bicubic` | transformers (CLIP, SigLIP, DINOv2) | torch's `interpolate(mode="bicubic")`: a = -0.75, four taps |
| `linear` | open_clip's text tables | torch's `interpolate(mode="linear")` |
| `zoom` | big_vision | `scipy.ndimage.zoom(order=1)`: the corners stay the corners |

All are linear and separable: one small matrix an axis, computed in float64.
"""

import math
from collections.abc import Callable

import numpy as np

from clipjax.errors import UserError
from clipjax.registry import nearest


def _centres(old: int, new: int) -> np.ndarray:
    """Where the centres of `new` cells lie among `old` cells (align_corners=False)."""
    return (np.arange(new) + 0.5) * old / new - 0.5


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981, equation 4) with slope a at 1."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _taps(at: np.ndarray, weights: Callable[[np.ndarray], np.ndarray], reach: int, old: int):
    """[new, old] from a kernel of 2 `reach` taps around each place; taps beyond an end fall on it."""
    matrix = np.zeros((len(at), old))
    base = np.floor(at).astype(int)
    for tap in range(1 - reach, reach + 1):
        index = np.clip(base + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(len(at)), index), weights(at - (base + tap)))
    return matrix


def _bicubic(old: int, new: int) -> np.ndarray:
    return _taps(_centres(old, new), lambda x: _cubic(x, -0.75), 2, old)


def _linear(old: int, new: int) -> np.ndarray:
    at = np.maximum(_centres(old, new), 0.0)
    return _taps(at, lambda x: np.maximum(1 - np.abs(x), 0.0), 1, old)


def _bicubic_antialias(old: int, new: int) -> np.ndarray:
    """As in Pillow: the kernel grows with the reduction, and what is left of it at the ends is normalised."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new
    cells = np.arange(old) + 0.5
    # The outermost cells are those whose index lies within the kernel's support, rounded to cells.
    first = np.maximum((centres - 2 * scale + 0.5).astype(int), 0)
    last = np.minimum((centres + 2 * scale + 0.5).astype(int), old)
    inside = (np.arange(old) >= first[:, None]) & (np.arange(old) < last[:, None])
    matrix = np.where(inside, _cubic((cells - centres[:, None]) / scale, -0.5), 0.0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _zoom(old: int, new: int) -> np.ndarray:
    at = np.arange(new) * ((old - 1) / (new - 1)) if new > 1 else np.zeros(1)
    return _taps(at, lambda x: np.maximum(1 - np.abs(x), 0.0), 1, old)


METHODS: dict[str, Callable[[int, int], np.ndarray]] = {
    "bicubic_antialias": _bicubic_antialias,
    "bicubic": _bicubic,
    "linear": _linear,
    "zoom": _zoom,
}


def check_method(method: str) -> None:
    """Raises UserError if there is no such method."""
    if method not in METHODS:
        raise UserError(f"There is no way to resample {method!r}{nearest(method, METHODS)}.")


def resample_grid(table_NxW: np.ndarray, grid: int, method: str, prefix: int = 0) -> np.ndarray:
    """Positions of a square grid for one of another size.

    Args:
      table_NxW: [prefix + g * g, W], row by row.
      grid: side of the new grid.
      method: a key of `METHODS`.
      prefix: rows before the grid's that stay, such as the class token's.

    Returns:
      [prefix + grid * grid, W] in the table's dtype; the table itself if the grid is its own.

    Raises:
      UserError: no such method, or a table that is not of a square grid.
    """
    check_method(method)
    rows, width = table_NxW.shape
    old = math.isqrt(rows - prefix)
    if old * old != rows - prefix:
        raise UserError(
            f"A position table of {rows} rows, {prefix} of them apart, is no square grid."
        )
    if old == grid:
        return table_NxW
    matrix = METHODS[method](old, grid)
    cells = table_NxW[prefix:].astype(np.float64).reshape(old, old, width)
    new = np.einsum("ri,cj,ijw->rcw", matrix, matrix, cells, optimize=True).reshape(-1, width)
    return np.concatenate([table_NxW[:prefix], new.astype(table_NxW.dtype)])


def resample_line(table_LxW: np.ndarray, length: int, method: str = "linear") -> np.ndarray:
    """Positions of texts for another length: [L, W] -> [length, W] in the table's dtype.

    open_clip stretches the whole table (so short texts get other positions too), which is what this does; a text tower
    that is to keep its first positions is stretched by an experiment's own stage.
    """
    check_method(method)
    if len(table_LxW) == length:
        return table_LxW
    matrix = METHODS[method](len(table_LxW), length)
    return (matrix @ table_LxW.astype(np.float64)).astype(table_LxW.dtype)
