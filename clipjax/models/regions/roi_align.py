"""RoI-Align: the average of a feature map inside a box, at points between the grid's (He et al. 2017, section 3)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.grid import SQUARE
from clipjax.models.heads import Projection

# Points along each side of a box: bins of a 7 x 7 output with two samples each, as Mask R-CNN's box head has them.
POINTS = 14


def roi_align(tokens_BxNxW: jax.Array, boxes_BxMx4: jax.Array, grid: int) -> jax.Array:
    """The mean of bilinear samples at `POINTS` x `POINTS` points of each box.

    The mean over all bins of RoI-Align with half-pixel centres (torchvision's `aligned=True`): the centre of patch i is
    at i + 1/2, and points beyond the outermost centres take these patches' values. A bilinear sample at (x, y) has
    weights that are a product of one of x and one of y, and so has the mean: two small products, and no gather. Cost:
    2 B M N W FLOPs forward.

    Args:
      tokens_BxNxW: tokens of a square grid of patches, row by row.
      boxes_BxMx4: x1, y1, x2, y2 as fractions of the frame.
      grid: patches on a side.

    Returns:
      [B, M, W] in the dtype of the tokens.
    """
    batch, _, width = tokens_BxNxW.shape
    place_P = (jnp.arange(POINTS) + 0.5) / POINTS

    def weights(low_BxM: jax.Array, high_BxM: jax.Array) -> jax.Array:
        """Mean weight of each row (or column) of patches, [B, M, grid]."""
        at_BxMxP = low_BxM[..., None] + (high_BxM - low_BxM)[..., None] * place_P
        at_BxMxP = jnp.clip(at_BxMxP * grid - 0.5, 0, grid - 1)
        distance = jnp.abs(at_BxMxP[..., None] - jnp.arange(grid))
        return jnp.mean(jnp.maximum(1 - distance, 0), axis=2).astype(tokens_BxNxW.dtype)

    x1, y1, x2, y2 = jnp.moveaxis(boxes_BxMx4.astype(jnp.float32), -1, 0)
    map_BxHxVxW = tokens_BxNxW.reshape(batch, grid, grid, width)
    rows = jnp.einsum("bmh,bhvw->bmvw", weights(y1, y2), map_BxHxVxW)
    return jnp.einsum("bmv,bmvw->bmw", weights(x1, x2), rows)


class RoiAlign(nn.Module):
    """Regions by RoI-Align and a projection of their own: the baseline of CLOC (Chen et al. 2025, table 2).

    It has no text prompts, so there is nothing that a grounding loss could read.
    """

    takes_texts: ClassVar[bool] = False

    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens_BxNxW: jax.Array,
        embed_dim: int,
        *,
        grid: int | None = None,
        boxes_BxMx4: jax.Array | None = None,
        text_BxMxD: jax.Array | None = None,
        real_BxN: jax.Array | None = None,
    ) -> tuple[jax.Array | None, None]:
        """As `Prompter`, without boxes of texts.

        Raises:
          UserError: the tokens are not a square grid.
        """
        del text_BxMxD, real_BxN
        if boxes_BxMx4 is None:
            return None, None
        if grid is None:
            raise UserError(f"RoI-Align needs {SQUARE}")
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        pooled_BxMxW = roi_align(tokens_BxNxW.astype(self.dtype), boxes_BxMx4, grid)
        return Projection("linear", embed_dim, name="projection", **dtypes)(pooled_BxMxW), None
