"""Places in an image as vectors: a sinusoidal code of a box's two corners, and of the patches' centres."""

import math

import jax
import jax.numpy as jnp

from clipjax.errors import UserError

# Wavelengths of the code, in frames: the longest tells one half of the image from the other, the shortest is about
# two patches of a ViT-B/16 at 448 px.
LONGEST, SHORTEST = 2.0, 1 / 16


def encode_points(points: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of both coordinates.

    A quarter of the width each for sin(x), cos(x), sin(y), cos(y), with wavelengths in geometric progression.

    Args:
      points: x and y as fractions of the frame, [..., 2].
      width: W, a multiple of 4.

    Returns:
      float32 [..., W].

    Raises:
      UserError: another width.
    """
    if width % 4:
        raise UserError(f"Places are encoded in a width that 4 divides, not {width}.")
    step = jnp.linspace(0.0, 1.0, width // 4)
    frequency_F = 2 * math.pi / LONGEST * (LONGEST / SHORTEST) ** step
    angles = points.astype(jnp.float32)[..., None] * frequency_F
    code = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-2)
    return code.reshape(*points.shape[:-1], width)


def encode_corners(boxes_BxMx4: jax.Array, width: int) -> jax.Array:
    """The codes of the top left and of the bottom right corner of boxes x1, y1, x2, y2: float32 [B, M, 2, W].

    Raises:
      UserError: boxes of another shape, or a width that 4 does not divide.
    """
    if boxes_BxMx4.ndim != 3 or boxes_BxMx4.shape[-1] != 4:
        raise UserError(f"Boxes must be [B, M, 4], not {list(boxes_BxMx4.shape)}.")
    return encode_points(boxes_BxMx4.reshape(*boxes_BxMx4.shape[:2], 2, 2), width)


def encode_grid(side: int, width: int) -> jax.Array:
    """The codes of the centres of side x side patches, row by row: float32 [side * side, W]."""
    y, x = jnp.mgrid[:side, :side].reshape(2, -1)
    return encode_points((jnp.stack([x, y], axis=-1) + 0.5) / side, width)
