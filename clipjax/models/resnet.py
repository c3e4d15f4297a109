"""The ResNet of CLIP (Radford et al. 2021, section 2.4): ResNet-D (He et al. 2019) with attention pooling.

Three convolutions for a stem, average pooling where others stride (Zhang 2019), and at the end one query, the mean of
the feature map, that attends to it. The same network is open_clip's `ModifiedResNet`. Batch normalisation uses its
stored statistics, also while training, as in a locked tower.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.attention import dot_product_attention, head_size
from clipjax.models.batch_norm import stored_norm
from clipjax.models.layers import Dense, matmul, parameter

EXPANSION = 4  # outputs of a block over its inner width
STRIDE = 32  # of the whole network: the stem's 4, and 2 for each stage but the first


class ConvNorm(nn.Module):
    """Convolution with padding that keeps the size, and batch normalisation folded into it.

    Parameters: `kernel` ([in, width] if 1x1, else [K, K, in, width]), `scale`, `bias`, `mean`, `var` [width].

    Attributes:
      width: output channels.
      kernel: side of the square kernel, odd.
      zero_scale: whether `scale` begins at zero.
    """

    width: int
    kernel: int = 1
    stride: int = 1
    zero_scale: bool = False
    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]."""
        size, channels = self.kernel, x_BxHxWxC.shape[-1]
        shape = (channels, self.width) if size == 1 else (size, size, channels, self.width)
        axes = (*(None,) * (len(shape) - 1), "embed")
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = parameter(self, "kernel", init, shape, axes, self.param_dtype)
        scale_init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        factor, offset = stored_norm(self, self.width, self.eps, scale_init, self.param_dtype)

        folded = (kernel * factor).astype(self.dtype)
        x = x_BxHxWxC.astype(self.dtype)
        if size == 1:
            y = matmul(x[:, :: self.stride, :: self.stride], folded)
        else:
            pad = (size // 2, size // 2)
            layout = ("NHWC", "HWIO", "NHWC")
            strides = (self.stride, self.stride)
            y = jax.lax.conv_general_dilated(
                x, folded, strides, (pad, pad), dimension_numbers=layout
            )
        return y + offset.astype(self.dtype)


def average_pool(x_BxHxWxC: jax.Array, size: int) -> jax.Array:
    """Means of `size` x `size` windows side by side: [B, H / size, W / size, C]."""
    batch, height, width, channels = x_BxHxWxC.shape
    windows = x_BxHxWxC.reshape(batch, height // size, size, width // size, size, channels)
    return windows.mean(axis=(2, 4))


class Bottleneck(nn.Module):
    """1x1, 3x3, pool, 1x1, plus the input, itself pooled and projected where the shapes differ."""

    width: int
    stride: int = 1
    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, 4 * width]."""
        how = dict(eps=self.eps, dtype=self.dtype, param_dtype=self.param_dtype)
        out = self.width * EXPANSION
        y = nn.relu(ConvNorm(self.width, name="conv_1", **how)(x_BxHxWxC))
        y = nn.relu(ConvNorm(self.width, 3, name="conv_2", **how)(y))
        x = x_BxHxWxC
        if self.stride > 1:
            x, y = average_pool(x, self.stride), average_pool(y, self.stride)
        y = ConvNorm(out, zero_scale=True, name="conv_3", **how)(y)
        if self.stride > 1 or x.shape[-1] != out:
            x = ConvNorm(out, name="shortcut", **how)(x)
        return nn.relu(x + y)


class Stage(nn.Module):
    """`depth` blocks of one width, of which the first one strides."""

    depth: int
    width: int
    stride: int
    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, 4 * width]."""
        how = dict(eps=self.eps, dtype=self.dtype, param_dtype=self.param_dtype)
        x = x_BxHxWxC
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            x = Bottleneck(self.width, stride, name=f"block_{i}", **how)(x)
        return x


class AttentionPool(nn.Module):
    """The mean of the tokens, placed before them, attends to itself and to them; then a projection."""

    heads: int
    output_dim: int
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxNxC: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, output_dim]."""
        batch, tokens, width = x_BxNxC.shape
        size = head_size(width, self.heads)
        std = width**-0.5
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        position = parameter(
            self,
            "position_embedding",
            nn.initializers.normal(std),
            (1 + tokens, width),
            (None, "embed"),
            self.param_dtype,
        )
        x = jnp.concatenate([x_BxNxC.mean(axis=1, keepdims=True), x_BxNxC], axis=1)
        x = x + position.astype(self.dtype)

        def project(name: str, y: jax.Array) -> jax.Array:
            y = Dense(width, ("embed", "heads"), std, name=name, **dtypes)(y)
            return y.reshape(batch, -1, self.heads, size)

        y = dot_product_attention(
            project("query", x[:, :1]), project("key", x), project("value", x)
        )
        return Dense(self.output_dim, ("heads", "embed"), std, name="out", **dtypes)(
            y.reshape(batch, width)
        )


class ResNet(nn.Module):
    """CLIP's modified ResNet; the defaults are RN50.

    The attention pooling projects to the shared space itself: with `image_projection="none"`, `output_dim` is the
    model's `embed_dim`.

    Attributes:
      size: image height and width in pixels, a multiple of 32.
      layers: blocks of each stage.
      width: channels after the stem; the feature map has 32 times as many.
      heads: of the attention pooling; None for heads of 64 channels.
      output_dim: width of the pooled output.
      eps: of every batch normalisation.
    """

    size: int = 224
    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    heads: int | None = None
    output_dim: int = 1024
    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image_BxHxWx3: jax.Array, *, sample_seed: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes normalised images.

        Args:
          image_BxHxWx3: float images of `size` x `size`.
          sample_seed: not used; every tower takes it.

        Returns:
          pooled [B, output_dim] and the feature map's rows before pooling, [B, N, 32 * width].

        Raises:
          UserError: a size, images, a number of stages or heads that do not fit.
        """
        del sample_seed
        self._check(image_BxHxWx3.shape)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        how = dict(eps=self.eps, **dtypes)
        x = nn.relu(ConvNorm(self.width // 2, 3, 2, name="stem_1", **how)(image_BxHxWx3))
        x = nn.relu(ConvNorm(self.width // 2, 3, name="stem_2", **how)(x))
        x = nn.relu(ConvNorm(self.width, 3, name="stem_3", **how)(x))
        x = average_pool(x, 2)
        for i, depth in enumerate(self.layers):
            stride = 1 if i == 0 else 2
            x = Stage(depth, self.width * 2**i, stride, name=f"layer_{i + 1}", **how)(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        heads = tokens.shape[-1] // 64 if self.heads is None else self.heads
        pooled = AttentionPool(heads, self.output_dim, name="pool", **dtypes)(tokens)
        return pooled, tokens

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuses settings and images that do not fit together."""
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise UserError(
                f"A ResNet has 4 stages of at least 1 block each, not layers={list(self.layers)}."
            )
        if self.width < 2 or self.width % 2:
            raise UserError(f"A ResNet's width must be even, not {self.width}.")
        if self.size < STRIDE or self.size % STRIDE:
            raise UserError(
                f"A ResNet takes images whose side is a multiple of {STRIDE} px, not {self.size} px."
            )
        if shape[1:] != (self.size, self.size, 3):
            raise UserError(
                f"The image tower takes images [{self.size}, {self.size}, 3], not {list(shape[1:])}."
            )
