"""One tower alone: for teachers, cluster discrimination, sentence encoders.

Names of parameters and outputs are those of `DualEncoder`, so one is a part of the other's checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from clipjax.models.heads import Projection, image_outputs, text_outputs


class ImageEncoder(nn.Module):
    """An image tower and its projection. Attributes as in `DualEncoder`."""

    image: nn.Module
    embed_dim: int = 512
    image_projection: str = "linear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtype: str = "float32"
    param_dtype: str = "float32"

    needs = ("image",)

    def setup(self) -> None:
        self.image_head = Projection(
            self.image_projection, self.embed_dim, self.dtype, self.param_dtype
        )

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """`image_embedding` and `image_tokens` of a batch as for `DualEncoder`, of which `text` is not read."""
        seed = batch["sample_seed"] if train else None
        return image_outputs(self.image, self.image_head, batch, seed, self.mean, self.std)


class TextEncoder(nn.Module):
    """A text tower and its projection. Attributes as in `DualEncoder`."""

    text: nn.Module
    embed_dim: int = 512
    text_projection: str = "linear"
    dtype: str = "float32"
    param_dtype: str = "float32"

    needs = ("text",)

    def setup(self) -> None:
        self.text_head = Projection(
            self.text_projection, self.embed_dim, self.dtype, self.param_dtype
        )

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """`text_embedding` and `text_tokens` of a batch as for `DualEncoder`, of which `image` is not read."""
        seed = batch["sample_seed"] if train else None
        return text_outputs(self.text, self.text_head, batch, seed)
