"""Convolutional stems: from pixels to the patch grid in several steps."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import LayerNorm, activation, matmul, parameter
from clipjax.models.patches import PatchEmbedding
from clipjax.platform import target_platform


class ConvStem(nn.Module):
    """Stride-2 3x3 convolutions down to the patch grid, then 1x1 (Xiao et al. 2021): learns faster from little.

    Channels double at each step and end at the tower's width.
    """

    patch: int
    width: int
    activation: str = "gelu"
    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, image_BxHxWx3: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H/p, W/p, width]."""
        steps = int(math.log2(self.patch))
        if 2**steps != self.patch:
            raise UserError(
                f"A conv stem halves the image at each step; patch {self.patch} is not a power of 2."
            )
        x = image_BxHxWx3.astype(self.dtype)
        for i in range(steps):
            features = self.width // 2 ** (steps - i)
            x = Conv3x3(
                features, 2, dtype=self.dtype, param_dtype=self.param_dtype, name=f"conv_{i}"
            )(x)
            x = LayerNorm(self.eps, self.dtype, self.param_dtype, name=f"norm_{i}")(x)
            x = activation(self.activation)(x)
        return PatchEmbedding(1, self.width, True, self.dtype, self.param_dtype, name="out")(x)


class Conv3x3(nn.Module):
    """3x3 convolution without bias, padding 1."""

    features: int
    stride: int = 1
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H/stride, W/stride, features]."""
        shape = (3, 3, x_BxHxWxC.shape[-1], self.features)
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = parameter(
            self, "kernel", init, shape, (None, None, None, "embed"), self.param_dtype
        )
        kernel = kernel.astype(self.dtype)
        if target_platform() == "cpu":
            return self._unfolded(x_BxHxWxC, kernel)
        return jax.lax.conv_general_dilated(
            x_BxHxWxC,
            kernel,
            (self.stride, self.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def _unfolded(self, x_BxHxWxC: jax.Array, kernel: jax.Array) -> jax.Array:
        """The same as one matrix product over nine shifted images: faster on a CPU, for nine times the memory."""
        _, height, width, _ = x_BxHxWxC.shape
        s = self.stride
        rows, columns = -(-height // s), -(-width // s)
        x = jnp.pad(x_BxHxWxC, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [
            x[:, i : i + s * (rows - 1) + 1 : s, j : j + s * (columns - 1) + 1 : s]
            for i in range(3)
            for j in range(3)
        ]
        return matmul(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, self.features))
