"""From a tower to the shared space: what every model with a tower does around it."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import Dense, activation
from clipjax.registry import nearest

KINDS = ("linear", "bias", "mlp", "mlp_half", "none")


def l2_normalise(x: jax.Array) -> jax.Array:
    """Float32 vectors of length 1 along the last axis; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    nonzero = square > 1e-24
    return x * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def normalise_pixels(image: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 -> (x / 255 - mean) / std in float32; what is not uint8 passes unchanged.

    Args:
      image: pictures [B, H, W, 3], or flattened patches [B, N, 3pp] in the order row, column, channel.
      mean: of the three channels.
      std: of the three channels.
    """
    if image.dtype != jnp.uint8:
        return image
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    shape = image.shape
    if image.ndim == 3:
        image = image.reshape(*shape[:2], -1, len(mean))
    return ((image.astype(jnp.float32) / 255.0 - mean) / std).reshape(shape)


class Projection(nn.Module):
    """From a tower's width to the shared space.

    Attributes:
      kind: "linear" (CLIP), "bias" (linear with bias, SigLIP's text), "none", "mlp" (a hidden layer of twice the
        tower's width, for frozen towers), or "mlp_half" (a hidden layer between the two widths, no biases: open_clip's
        projection of towers from transformers).
    """

    kind: str
    width: int
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxW: jax.Array) -> jax.Array:
        """[B, W] -> [B, width]."""
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        tower_width = x_BxW.shape[-1]
        std = tower_width**-0.5
        if self.kind in ("linear", "bias"):
            return Dense(
                self.width, ("embed", None), std, self.kind == "bias", name="out", **dtypes
            )(x_BxW)
        if self.kind in ("mlp", "mlp_half"):
            biases = self.kind == "mlp"
            size = 2 * tower_width if self.kind == "mlp" else (tower_width + self.width) // 2
            hidden = Dense(size, ("embed", "mlp"), std, biases, name="fc_in", **dtypes)(x_BxW)
            hidden = activation("gelu")(hidden)
            return Dense(self.width, ("mlp", None), size**-0.5, biases, name="fc_out", **dtypes)(
                hidden
            )
        if self.kind != "none":
            raise UserError(f"There is no projection {self.kind!r}{nearest(self.kind, KINDS)}.")
        if tower_width != self.width:
            raise UserError(
                f"Without a projection a tower of width {tower_width} must equal the shared width {self.width}; "
                "set model.embed_dim or choose a projection."
            )
        return x_BxW


def image_outputs(
    tower: nn.Module,
    head: nn.Module,
    batch: Mapping[str, jax.Array],
    sample_seed: jax.Array | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, jax.Array]:
    """`image_embedding`, `image_embedding_raw`, `image_tokens` of a batch's `image` (see `normalise_pixels`)."""
    shape = {"image_shape": batch["image_shape"]} if "image_shape" in batch else {}
    pixels = normalise_pixels(batch["image"], mean, std)
    pooled, tokens = tower(pixels, sample_seed=sample_seed, **shape)
    raw = head(pooled).astype(jnp.float32)
    return {
        "image_embedding": l2_normalise(raw),
        "image_embedding_raw": raw,
        "image_tokens": tokens,
    }


def text_outputs(
    tower: nn.Module,
    head: nn.Module,
    batch: Mapping[str, jax.Array],
    sample_seed: jax.Array | None,
) -> dict[str, jax.Array]:
    """`text_embedding`, `text_embedding_raw`, `text_tokens` of `text` [B, L] or [B, K, L], with `text_mask` if any."""
    text, mask = batch["text"], batch.get("text_mask")
    *lead, length = text.shape
    pooled, tokens = tower(
        text.reshape(-1, length),
        mask=None if mask is None else mask.reshape(-1, length),
        sample_seed=sample_seed,
    )
    raw = head(pooled).astype(jnp.float32)
    return {
        "text_embedding": l2_normalise(raw).reshape(*lead, raw.shape[-1]),
        "text_embedding_raw": raw.reshape(*lead, raw.shape[-1]),
        "text_tokens": tokens.reshape(*lead, *tokens.shape[1:]),
    }
