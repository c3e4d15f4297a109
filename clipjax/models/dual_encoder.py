"""Two towers and the space they share."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.grid import square_grid
from clipjax.models.heads import (
    Projection,
    image_features,
    image_outputs,
    l2_normalise,
    text_outputs,
)
from clipjax.models.layers import parameter
from clipjax.models.regions.roi_align import roi_align


class DualEncoder(nn.Module):
    """An image tower and a text tower whose projected, normalised outputs meet in one space.

    Attributes:
      image: module `(image_BxHxWx3, sample_seed=) -> (pooled_BxW, tokens_BxNxW)`.
      text: module `(text_BxL, mask=, sample_seed=) -> (pooled_BxW, tokens_BxLxW)`.
      embed_dim: width D of the shared space.
      image_projection: kind of `Projection`.
      text_projection: kind of `Projection`.
      init_scale: initial logit scale (exponentiated); the parameter holds its logarithm.
      init_bias: initial logit bias; None: no bias (softmax loss).
      mean, std: channel statistics of images in [0, 1], for uint8 input.
    """

    image: nn.Module
    text: nn.Module
    embed_dim: int = 512
    image_projection: str = "linear"
    text_projection: str = "linear"
    init_scale: float = 1 / 0.07
    init_bias: float | None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtype: str = "float32"
    param_dtype: str = "float32"

    needs = ("image", "text")

    # A subclass, or a function given to `module.apply(..., method=function)`, finds the projections into the shared
    # space as `image_head` and `text_head`, and the logarithm of the scale as `logit_scale`.

    def setup(self) -> None:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.image_head = Projection(self.image_projection, self.embed_dim, **dtypes)
        self.text_head = Projection(self.text_projection, self.embed_dim, **dtypes)
        constant = nn.initializers.constant
        self.logit_scale = parameter(
            self, "logit_scale", constant(math.log(self.init_scale)), (), (), "float32"
        )
        if self.init_bias is not None:
            self.logit_bias = parameter(
                self, "logit_bias", constant(self.init_bias), (), (), "float32"
            )

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """Encodes what the batch holds: `image`, `text`, or both. See clipjax/fields.py for the names.

        Args:
          batch: `image` uint8 (normalised here) or float (already normalised), [B,H,W,3], or, with `image_shape`,
            flattened patches [B,N,P]; `text` [B,L] or [B,K,L], with `text_mask` if there is padding that must not be
            seen; `sample_seed` [B] while training.
          train: whether to drop patches and the like.

        Returns:
          Outputs. With K captions an image, `text_embedding` is [B,K,D].
        """
        seed = batch["sample_seed"] if train else None
        outputs: dict[str, Any] = {"logit_scale": jnp.exp(self.logit_scale)}
        if self.init_bias is not None:
            outputs["logit_bias"] = self.logit_bias
        if "image" in batch:
            outputs |= image_outputs(self.image, self.image_head, batch, seed, self.mean, self.std)
        if "text" in batch:
            outputs |= text_outputs(self.text, self.text_head, batch, seed)
        return outputs

    def pool_regions(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Regions of a model that was not trained for them: its tokens in a box, averaged, as if they were an image.

        Args:
          batch: `image`, and `boxes` [B,M,4].

        Returns:
          float32 [B,M,D], L2-normalised. Where pooling is more than an average (a class token, attention, a norm
          behind it), the image projection has not seen such vectors.

        Raises:
          UserError: the tower's tokens are not a square grid, or not as wide as what it pools (a ResNet's).
        """
        whole, tokens = image_features(self.image, batch, None, self.mean, self.std)
        grid = square_grid(self.image, tokens.shape[1])
        if grid is None or tokens.shape[-1] != whole.shape[-1]:
            raise UserError(
                f"This image tower's {tokens.shape[1]} tokens of width {tokens.shape[-1]} are not what its projection "
                "takes, or no square grid; embed regions with how='crop'."
            )
        return l2_normalise(self.image_head(roi_align(tokens, batch["boxes"], grid)))
