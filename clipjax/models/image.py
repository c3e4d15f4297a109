"""The vision transformer (Dosovitskiy et al. 2021) with the options that CLIP-like models use."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import LayerNorm, activation, matmul, parameter
from clipjax.models.pooling import MapPool
from clipjax.models.transformer import Transformer
from clipjax.platform import target_platform
from clipjax.registry import nearest


def sincos_2d(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-D sine-cosine positions, float32 [rows * columns, width] (Chen et al. 2021, MoCo v3).

    A quarter of the width each for sin(x), cos(x), sin(y), cos(y), with geometric frequencies.
    """
    if width % 4:
        raise UserError(f"2-D sine-cosine positions need a width that 4 divides, not {width}.")
    y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1)
    frequency = temperature ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
    angles = [
        np.sin(x * frequency),
        np.cos(x * frequency),
        np.sin(y * frequency),
        np.cos(y * frequency),
    ]
    return np.concatenate(angles, axis=1).astype(np.float32)


def drop_patches(x_BxNxW: jax.Array, rate: float, sample_seed_B: jax.Array) -> jax.Array:
    """Keeps a random ceil((1 - rate) N) of each sample's tokens, in their order (Li et al. 2023, FLIP)."""
    tokens = x_BxNxW.shape[1]
    # The small number undoes rounding: (1 - 0.7) * 10 is a little more than 3.
    kept = max(1, math.ceil((1.0 - rate) * tokens - 1e-6))
    noise = jax.vmap(lambda seed: jax.random.uniform(jax.random.key(seed), (tokens,)))(
        sample_seed_B
    )
    index_BxK = jnp.sort(jnp.argsort(noise, axis=1)[:, :kept], axis=1)
    return jnp.take_along_axis(x_BxNxW, index_BxK[:, :, None], axis=1)


class PatchEmbedding(nn.Module):
    """Cuts non-overlapping patches and projects them: a convolution with stride = kernel size, as a matrix product."""

    patch: int
    width: int
    use_bias: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, image_BxHxWx3: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H // p, W // p, width].

        Pixels that fill no patch, at the right and the bottom, are not seen, as with a convolution without padding
        (SigLIP So400m has 384 px and patches of 14).
        """
        p = self.patch
        rows, columns = image_BxHxWx3.shape[1] // p, image_BxHxWx3.shape[2] // p
        image_BxHxWx3 = image_BxHxWx3[:, : rows * p, : columns * p]
        batch, *_, channels = image_BxHxWx3.shape
        fan_in = p * p * channels
        shape = (p, p, channels, self.width)
        axes = (None, None, None, "embed")
        kernel = parameter(
            self, "kernel", nn.initializers.normal(fan_in**-0.5), shape, axes, self.param_dtype
        )
        x = image_BxHxWx3.astype(self.dtype).reshape(batch, rows, p, columns, p, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, fan_in)
        x = matmul(x, kernel.astype(self.dtype).reshape(fan_in, self.width))
        if self.use_bias:
            bias = parameter(
                self, "bias", nn.initializers.zeros, shape[3:], axes[3:], self.param_dtype
            )
            x = x + bias.astype(self.dtype)
        return x


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
                f"A conv stem halves the picture at each step; patch {self.patch} is no power of 2."
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
        """The same as one matrix product over nine shifted pictures: faster on a CPU, for nine times the memory."""
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


class ViT(nn.Module):
    """Vision transformer: patches, positions, pre-norm blocks, pooling.

    Attributes:
      size: picture height and width in pixels.
      stem: "patch" (one matrix product) or "conv" (`ConvStem`).
      pool: "class" (class token), "average", or "map" (attention pooling).
      positions: "learned" or "sincos_2d".
      pre_norm: LayerNorm before the first block (`ln_pre` of OpenAI's CLIP).
      final_norm: "tokens" normalises all tokens, then pools; "pooled" pools first (CLIPA).
      mlp_ratio: MLP width over tower width.
      patch_bias: whether the patch embedding has a bias (OpenAI's CLIP: no).
      patch_dropout: fraction of patches left out while training (FLIP).
      layer_scale: initial gain of each residual branch, None for none.
      registers: learned extra tokens that are thrown away (Darcet et al. 2024).
      qk_norm, remat, unroll, attention_impl, quantize: see `Transformer`.
    """

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    stem: str = "patch"
    pool: str = "class"
    positions: str = "learned"
    activation: str = "gelu"
    pre_norm: bool = True
    final_norm: str = "tokens"
    patch_bias: bool = False
    patch_dropout: float = 0.0
    layer_scale: float | None = None
    registers: int = 0
    qk_norm: bool = False
    eps: float = 1e-5
    remat: str = "none"
    unroll: int = 1
    attention_impl: str = "einsum"
    quantize: str | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch

    @nn.compact
    def __call__(
        self, image_BxHxWx3: jax.Array, *, sample_seed: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes normalised pictures.

        Args:
          image_BxHxWx3: float pictures of `size` x `size`.
          sample_seed: uint32 [B] while training; None at inference, where no patch is dropped.

        Returns:
          pooled [B, W] and patch tokens [B, N, W] after the final norm.
        """
        self._check(image_BxHxWx3.shape)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.stem == "conv":
            stem = ConvStem(
                self.patch, self.width, self.activation, self.eps, name="stem", **dtypes
            )
        else:
            stem = PatchEmbedding(self.patch, self.width, self.patch_bias, name="stem", **dtypes)
        x = stem(image_BxHxWx3)
        batch = x.shape[0]
        x = x.reshape(batch, -1, self.width)
        prefix = 1 if self.pool == "class" else 0
        tokens = x.shape[1]

        if self.positions == "learned":
            init = nn.initializers.normal(self.width**-0.5)
            shape = (prefix + tokens, self.width)
            position = parameter(
                self, "position_embedding", init, shape, (None, "embed"), self.param_dtype
            )
        else:
            fixed = sincos_2d(self.grid, self.grid, self.width)
            position = jnp.concatenate([jnp.zeros((prefix, self.width)), fixed])
        x = x + position[prefix:].astype(self.dtype)
        if self.patch_dropout and sample_seed is not None:
            x = drop_patches(x, self.patch_dropout, sample_seed)

        extra = []
        if prefix:
            init = nn.initializers.normal(self.width**-0.5)
            token = parameter(
                self, "class_token", init, (1, self.width), (None, "embed"), self.param_dtype
            )
            extra.append((token + position[:1]).astype(self.dtype))
        if self.registers:
            init = nn.initializers.normal(0.02)
            shape = (self.registers, self.width)
            token = parameter(
                self, "register_tokens", init, shape, (None, "embed"), self.param_dtype
            )
            extra.append(token.astype(self.dtype))
        lead = sum(e.shape[0] for e in extra)
        if extra:
            first = jnp.broadcast_to(jnp.concatenate(extra), (batch, lead, self.width))
            x = jnp.concatenate([first, x], axis=1)

        if self.pre_norm:
            x = LayerNorm(self.eps, name="norm_pre", **dtypes)(x)
        mlp_dim = round(self.mlp_ratio * self.width)
        x = Transformer(
            self.depth,
            self.heads,
            mlp_dim,
            self.activation,
            self.eps,
            self.layer_scale,
            self.qk_norm,
            self.remat,
            self.unroll,
            attention_impl=self.attention_impl,
            quantize=self.quantize,
            name="transformer",
            **dtypes,
        )(x)

        norm = LayerNorm(self.eps, name="norm_post", **dtypes)
        if self.final_norm == "tokens":
            x = norm(x)
        patches = x[:, lead:]
        if self.pool == "class":
            pooled = x[:, 0]
        elif self.pool == "average":
            pooled = jnp.mean(patches, axis=1)
        else:
            pooled = MapPool(self.heads, mlp_dim, self.activation, self.eps, name="pool", **dtypes)(
                patches
            )
        if self.final_norm == "pooled":
            pooled = norm(pooled)
        return pooled, patches

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuses settings and pictures that do not fit together."""
        choices = {
            "stem": ("patch", "conv"),
            "pool": ("class", "average", "map"),
            "positions": ("learned", "sincos_2d"),
            "final_norm": ("tokens", "pooled"),
        }
        for field, valid in choices.items():
            value = getattr(self, field)
            if value not in valid:
                raise UserError(
                    f"The image tower's {field} cannot be {value!r}{nearest(value, valid)}."
                )
        if self.size < self.patch or (self.stem == "conv" and self.size % self.patch):
            raise UserError(
                f"A picture of {self.size} px cannot be cut into patches of {self.patch} px."
            )
        if shape[1:] != (self.size, self.size, 3):
            raise UserError(
                f"The image tower takes pictures [{self.size}, {self.size}, 3], not {list(shape[1:])}."
            )
        if not 0.0 <= self.patch_dropout < 1.0:
            raise UserError(
                f"patch_dropout must be at least 0 and below 1, not {self.patch_dropout}."
            )
