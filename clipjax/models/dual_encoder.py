"""Two towers and the space they share."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import Dense, activation, parameter
from clipjax.registry import nearest


def l2_normalise(x: jax.Array) -> jax.Array:
    """Float32 vectors of length 1 along the last axis; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    nonzero = square > 1e-24
    return x * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


class Projection(nn.Module):
    """From a tower's width to the shared space.

    Attributes:
      kind: "linear" (CLIP), "bias" (linear with bias, SigLIP's text), "none", or "mlp" (a hidden layer of twice
        the tower's width, for frozen towers).
    """

    kind: str
    width: int
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxW: jax.Array) -> jax.Array:
        """[B, W] -> [B, width]."""
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        std = x_BxW.shape[-1] ** -0.5
        if self.kind in ("linear", "bias"):
            return Dense(
                self.width, ("embed", None), std, self.kind == "bias", name="out", **dtypes
            )(x_BxW)
        if self.kind == "mlp":
            hidden = Dense(2 * x_BxW.shape[-1], ("embed", "mlp"), std, name="fc_in", **dtypes)(
                x_BxW
            )
            hidden = activation("gelu")(hidden)
            return Dense(
                self.width, ("mlp", None), hidden.shape[-1] ** -0.5, name="fc_out", **dtypes
            )(hidden)
        if self.kind != "none":
            kinds = ("linear", "bias", "mlp", "none")
            raise UserError(f"There is no projection {self.kind!r}{nearest(self.kind, kinds)}.")
        if x_BxW.shape[-1] != self.width:
            raise UserError(
                f"Without a projection a tower of width {x_BxW.shape[-1]} must equal the shared width "
                f"{self.width}; set model.embed_dim or choose a projection."
            )
        return x_BxW


class DualEncoder(nn.Module):
    """An image tower and a text tower whose projected, normalised outputs meet in one space.

    Attributes:
      image: module `(image_BxHxWx3, sample_seed=) -> (pooled_BxW, tokens_BxNxW)`.
      text: module `(text_BxL, mask=, sample_seed=) -> (pooled_BxW, tokens_BxLxW)`.
      embed_dim: width D of the shared space.
      init_scale: initial logit scale (exponentiated); the parameter holds its logarithm.
      init_bias: initial logit bias; None: no bias (softmax loss).
      mean, std: channel statistics of pictures in [0, 1], for uint8 input.
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
          batch: `image` uint8 (normalised here) or float (already normalised) [B,H,W,3]; `text` [B,L] or [B,K,L],
            with `text_mask` if there is padding that must not be seen; `sample_seed` [B] while training.
          train: whether to drop patches and the like.

        Returns:
          Outputs. With K captions an image, `text_embedding` is [B,K,D].
        """
        seed = batch["sample_seed"] if train else None
        outputs: dict[str, Any] = {"logit_scale": jnp.exp(self.logit_scale)}
        if self.init_bias is not None:
            outputs["logit_bias"] = self.logit_bias
        if "image" in batch:
            pooled, tokens = self.image(self.normalise(batch["image"]), sample_seed=seed)
            outputs["image_embedding"] = l2_normalise(self.image_head(pooled))
            outputs["image_tokens"] = tokens
        if "text" in batch:
            text = batch["text"]
            lead = text.shape[:-1]
            mask = batch.get("text_mask")
            pooled, tokens = self.text(
                text.reshape(-1, text.shape[-1]),
                mask=None if mask is None else mask.reshape(-1, text.shape[-1]),
                sample_seed=seed,
            )
            embedding = l2_normalise(self.text_head(pooled))
            outputs["text_embedding"] = embedding.reshape(*lead, self.embed_dim)
            outputs["text_tokens"] = tokens.reshape(*lead, *tokens.shape[1:])
        return outputs

    def normalise(self, image_BxHxWx3: jax.Array) -> jax.Array:
        """uint8 -> (x / 255 - mean) / std in float32; float pictures pass unchanged."""
        if image_BxHxWx3.dtype != jnp.uint8:
            return image_BxHxWx3
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (image_BxHxWx3.astype(jnp.float32) / 255.0 - mean) / std
