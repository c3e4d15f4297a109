"""EfficientNet-Lite image tower (Tan & Le 2019; Lite: ReLU6 and no squeeze-and-excitation).

A frozen tower, or one whose last stages are unlocked: batch normalisation always uses its stored
statistics.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from clipjax.models.batch_norm import stored_norm

NORM_EPSILON = 1e-3


class Stage(NamedTuple):
    """`repeat` inverted-residual blocks of one output width; only the first of them strides."""

    repeat: int
    kernel: int
    stride: int
    expand: int
    width: int


LITE0_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """TensorFlow's "SAME": (zeros before, zeros after, output size); the odd zero goes after."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2, out


def depthwise_conv(x_BxHxWxC: jax.Array, kernel_KxKxC: jax.Array, stride: int) -> jax.Array:
    """Depthwise convolution with "SAME" padding, as a sum of K² shifted products.

    XLA fuses the sum into one loop. On the CPU this is 15-45 times as fast as
    `lax.conv_general_dilated` with one group per channel, which takes a generic path there.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), C], in the input's dtype; summed in float32.
    """
    size = kernel_KxKxC.shape[0]
    top, bottom, height = _same_padding(x_BxHxWxC.shape[1], size, stride)
    left, right, width = _same_padding(x_BxHxWxC.shape[2], size, stride)
    padded = jnp.pad(x_BxHxWxC, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    kernel_KxKxC = kernel_KxKxC.astype(jnp.float32)
    total = sum(
        padded[:, i : i + rows : stride, j : j + columns : stride] * kernel_KxKxC[i, j]
        for i in range(size)
        for j in range(size)
    )
    return total.astype(x_BxHxWxC.dtype)


class ConvNorm(nn.Module):
    """Convolution and batch normalisation by stored statistics, folded into one affine map.

    Parameters: `kernel` ([K, K, C] if depthwise, [C, width] if pointwise, else [K, K, C, width])
    and `scale`, `bias`, `mean`, `var` of the width. The statistics get no gradient, but they are
    parameters: freeze rules must cover them, or weight decay shrinks them.
    """

    width: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    relu6: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), width]."""
        size, channels, width = self.kernel, x_BxHxWxC.shape[-1], self.width
        if self.depthwise:
            shape, axes = (size, size, width), {"in_axis": (0, 1), "out_axis": (), "batch_axis": 2}
        elif size == 1:
            shape, axes = (channels, width), {}
        else:
            shape, axes = (size, size, channels, width), {}
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", **axes)
        kernel = self.param("kernel", init, shape, jnp.float32)
        factor, offset = stored_norm(self, width, NORM_EPSILON)

        folded, offset = (kernel * factor).astype(self.dtype), offset.astype(self.dtype)
        x = x_BxHxWxC.astype(self.dtype)
        if self.depthwise:
            y = depthwise_conv(x, folded, self.stride)
        elif size == 1:
            y = x @ folded
        else:
            layout = ("NHWC", "HWIO", "NHWC")
            strides = (self.stride, self.stride)
            y = jax.lax.conv_general_dilated(x, folded, strides, "SAME", dimension_numbers=layout)
        y = y + offset
        return jnp.clip(y, 0, 6) if self.relu6 else y


class InvertedResidual(nn.Module):
    """Expand (1×1), depthwise, project (1×1, linear); plus the input where the shapes agree."""

    stage: Stage
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), stage.width]."""
        channels = x_BxHxWxC.shape[-1]
        inner = channels * self.stage.expand
        y = x_BxHxWxC
        if self.stage.expand != 1:
            y = ConvNorm(inner, dtype=self.dtype, name="expand")(y)
        y = ConvNorm(
            inner,
            self.stage.kernel,
            self.stride,
            depthwise=True,
            dtype=self.dtype,
            name="depthwise",
        )(y)
        y = ConvNorm(self.stage.width, relu6=False, dtype=self.dtype, name="project")(y)
        if self.stride == 1 and channels == self.stage.width:
            y = y + x_BxHxWxC
        return y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: 3.4 M parameters, features of width 1280.

    The input is normalised as (uint8 - 127) / 128, any height and width; the published weights were
    trained at 224×224. `stages`, `stem_width` and `head_width` are there for small test towers.

    Attributes:
        size: side of the images that the pipeline makes; the tower itself takes any.
        chunk: if set, images pass in groups of gcd(B, chunk), one after the other, so that a
            group's activations stay in the CPU's caches: 4 makes 128 px images about 1.5 times
            as fast. Leave it unset where the batch is split over devices.
        dtype: of the convolutions; the outputs are float32.
        param_dtype: every tower takes it; the parameters of this one are always float32.
    """

    size: int = 224
    stages: tuple[Stage, ...] = LITE0_STAGES
    stem_width: int = 32
    head_width: int = 1280
    chunk: int | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image_BxHxWx3: jax.Array, *, sample_seed: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds images.

        Args:
            image_BxHxWx3: float, normalised.
            sample_seed: not used; every tower takes it.

        Returns:
            (pooled [B, head_width], the average of the tokens, and tokens [B, N, head_width], row
            by row), both float32; N = ceil(H / 32) · ceil(W / 32) for Lite0.
        """
        del sample_seed
        batch = image_BxHxWx3.shape[0]
        if self.chunk is None:
            tokens_BxNxW = self._tokens(image_BxHxWx3)
        else:
            group = math.gcd(batch, self.chunk)
            scan = nn.scan(
                lambda tower, carry, images: (carry, tower._tokens(images)),
                variable_broadcast="params",
                split_rngs={"params": False},
            )
            images = image_BxHxWx3.reshape(batch // group, group, *image_BxHxWx3.shape[1:])
            _, tokens = scan(self, None, images)
            tokens_BxNxW = tokens.reshape(batch, *tokens.shape[2:])
        return tokens_BxNxW.mean(axis=1), tokens_BxNxW

    def _tokens(self, image_BxHxWx3: jax.Array) -> jax.Array:
        """The final feature map, [B, N, head_width] float32."""
        x = ConvNorm(self.stem_width, 3, 2, dtype=self.dtype, name="stem")(image_BxHxWx3)
        index = 0
        for stage in (Stage(*stage) for stage in self.stages):
            for repeat in range(stage.repeat):
                stride = stage.stride if repeat == 0 else 1
                x = InvertedResidual(stage, stride, self.dtype, name=f"block_{index}")(x)
                index += 1
        x = ConvNorm(self.head_width, dtype=self.dtype, name="head")(x)
        return x.reshape(x.shape[0], -1, self.head_width).astype(jnp.float32)
