"""Patches of images: cut and projected, and while training left out."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.models.layers import matmul, parameter


class PatchEmbedding(nn.Module):
    """Cuts non-overlapping patches and projects them: a convolution with stride = kernel size, as a matrix product."""

    patch: int
    width: int
    use_bias: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H // p, W // p, width], or patches that are cut already, [B, N, 3pp] -> [B, N, width].

        Pixels that fill no patch, at the right and the bottom, are not seen, as with a convolution without padding
        (SigLIP So400m has 384 px and patches of 14). Of a flattened patch the order is row, column, channel.
        """
        p = self.patch
        channels = image.shape[-1] if image.ndim == 4 else image.shape[-1] // (p * p)
        fan_in = p * p * channels
        shape = (p, p, channels, self.width)
        axes = (None, None, None, "embed")
        kernel = parameter(
            self, "kernel", nn.initializers.normal(fan_in**-0.5), shape, axes, self.param_dtype
        )
        x = self._cut(image) if image.ndim == 4 else image.astype(self.dtype)
        x = matmul(x, kernel.astype(self.dtype).reshape(fan_in, self.width))
        if self.use_bias:
            bias = parameter(
                self, "bias", nn.initializers.zeros, shape[3:], axes[3:], self.param_dtype
            )
            x = x + bias.astype(self.dtype)
        return x

    def _cut(self, image_BxHxWx3: jax.Array) -> jax.Array:
        p = self.patch
        batch, height, width, channels = image_BxHxWx3.shape
        rows, columns = height // p, width // p
        x = image_BxHxWx3[:, : rows * p, : columns * p].astype(self.dtype)
        x = x.reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, rows, columns, p * p * channels)


def kept_patches(tokens: int, rate: float, sample_seed_B: jax.Array) -> jax.Array:
    """Which ceil((1 - rate) N) of each sample's N tokens stay, at random, in their order: int32 [B, K].

    Li et al. 2023, FLIP.
    """
    # The small number undoes rounding: (1 - 0.7) * 10 is a little more than 3.
    kept = max(1, math.ceil((1.0 - rate) * tokens - 1e-6))
    noise = jax.vmap(lambda seed: jax.random.uniform(jax.random.key(seed), (tokens,)))(
        sample_seed_B
    )
    return jnp.sort(jnp.argsort(noise, axis=1)[:, :kept], axis=1)
