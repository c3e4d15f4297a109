"""The vision transformer (Dosovitskiy et al. 2021) with the options that CLIP-like models use."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.attention import head_size
from clipjax.models.layers import LayerNorm, activation, matmul, parameter
from clipjax.models.naflex import check_pictures, real_patches, resized_positions
from clipjax.models.options import block_options
from clipjax.models.patches import PatchEmbedding, kept_patches
from clipjax.models.pooling import AttentionPool, MapPool
from clipjax.models.rope import ROPES, rope_table, with_prefix
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
    """Vision transformer: patches, positions, blocks, pooling.

    Attributes:
      size: picture height and width in pixels.
      stem: "patch" (one matrix product) or "conv" (`ConvStem`).
      pool: "class" (class token), "average" (of the patches), "map" (`MapPool` over patches and the class token, if
        there is one), or "attention" (`AttentionPool` over the same: its first query is what is pooled).
      class_token: whether there is one; None: only if that is what is pooled.
      class_position: whether the class token has a learned position as well.
      positions: "learned", "sincos_2d", "naflex" (pictures of any shape, see clipjax/models/naflex.py), or "none".
      rope: rotary positions, a key of `rope.ROPES`; None for none.
      rope_grid: side of the grid of patches that `rope`'s angles are scaled to (its models were pretrained with);
        None: they are not scaled.
      pre_norm: LayerNorm before the first block (`ln_pre` of OpenAI's CLIP).
      final_norm: "tokens" normalises all tokens, then pools; "pooled" pools first (CLIPA). With pool="attention" the
        norm follows the pool, and is of its queries, all or the first.
      mlp_ratio: MLP width over tower width.
      patch_bias: whether the patch embedding has a bias (OpenAI's CLIP: no).
      patch_dropout: fraction of patches left out while training (FLIP).
      registers: learned extra tokens that are thrown away (Darcet et al. 2024).
      pool_heads: of "map" and "attention"; None: as the blocks.
      pool_mlp_ratio: of "map"; None: `mlp_ratio`.
      pool_queries: of "attention".
      pool_width: of "attention"'s queries, and so of what is pooled; None: the tower's.
      moe_layers, remat, unroll: see `Transformer`.
      All others: see `BlockOptions`.
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
    class_token: bool | None = None
    class_position: bool = True
    rope: str | None = None
    rope_grid: int | None = None
    norm_order: str = "pre"
    mlp: str = "mlp"
    mlp_norm: bool = False
    qkv_bias: bool = True
    key_bias: bool = True
    attention_norm: bool = False
    pool_heads: int | None = None
    pool_mlp_ratio: float | None = None
    pool_queries: int = 256
    pool_width: int | None = None
    experts: int = 0
    experts_per_token: int = 2
    moe_layers: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        image_shape: jax.Array | None = None,
        sample_seed: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes normalised pictures.

        Args:
          image: float pictures [B, H, W, 3] of `size` x `size`, with positions="naflex" of any sides that `patch`
            divides; or then, pictures of several shapes as flattened patches [B, N, 3pp].
          image_shape: with flattened patches, int32 [B, 2]: rows and columns of each picture, rows * columns at most N;
            what comes after these is padding.
          sample_seed: uint32 [B] while training; None at inference, where no patch is dropped.

        Returns:
          pooled [B, W] and patch tokens [B, N, W] after the final norm. With pool="attention", pooled [B, D] and the
          other queries' tokens [B, n - 1, D].
        """
        self._check(image.shape, image_shape, sample_seed is not None)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.stem == "conv":
            stem = ConvStem(
                self.patch, self.width, self.activation, self.eps, name="stem", **dtypes
            )
        else:
            stem = PatchEmbedding(self.patch, self.width, self.patch_bias, name="stem", **dtypes)
        x = stem(image)
        batch = x.shape[0]
        real_BxN = None
        if image_shape is not None:
            real_BxN = real_patches(image_shape, x.shape[1])
        elif self.positions == "naflex":
            image_shape = jnp.array([x.shape[1:3]])
        x = x.reshape(batch, -1, self.width)
        has_class = self.pool == "class" if self.class_token is None else self.class_token

        class_position, position = self._positions(x.shape[1], has_class, image_shape)
        if position is not None:
            x = x + position.astype(self.dtype)
        kept_BxK = None
        if self.patch_dropout and sample_seed is not None:
            kept_BxK = kept_patches(x.shape[1], self.patch_dropout, sample_seed)
            x = jnp.take_along_axis(x, kept_BxK[:, :, None], axis=1)

        extra = []
        if has_class:
            init = nn.initializers.normal(self.width**-0.5)
            token = parameter(
                self, "class_token", init, (1, self.width), (None, "embed"), self.param_dtype
            )
            if class_position is not None:
                token = token + class_position
            extra.append(token.astype(self.dtype))
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
        if real_BxN is not None:
            real_BxN = jnp.pad(real_BxN, ((0, 0), (lead, 0)), constant_values=True)

        if self.pre_norm:
            x = LayerNorm(self.eps, name="norm_pre", **dtypes)(x)
        rotation, how = None, {}
        if self.rope is not None:
            rotation = self._rotation(lead, has_class, kept_BxK)
            how = dict(rotation=ROPES[self.rope].pairs)
        options = block_options(self, mlp_dim=round(self.mlp_ratio * self.width), **how)
        blocks = Transformer(
            self.depth, options, self.remat, self.unroll, self.moe_layers, name="transformer"
        )
        mask = None if real_BxN is None else real_BxN[:, None, None, :]
        x = blocks(x, mask, rotation)
        return self._pooled(x, has_class, lead, real_BxN)

    def _positions(
        self, tokens: int, has_class: bool, image_shape: jax.Array | None
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """What is added to the class token [1, W] and to the patches ([N, W], or [1 or B, N, W]); None: nothing."""
        if self.positions == "none":
            return None, None
        init = nn.initializers.normal(self.width**-0.5)
        if self.positions == "naflex":
            shape, axes = (self.grid, self.grid, self.width), (None, None, "embed")
            table = parameter(self, "position_embedding", init, shape, axes, self.param_dtype)
            return None, resized_positions(table, image_shape, tokens)
        lead = 1 if has_class and self.class_position else 0
        if self.positions == "learned":
            shape = (lead + tokens, self.width)
            table = parameter(
                self, "position_embedding", init, shape, (None, "embed"), self.param_dtype
            )
        else:
            fixed = sincos_2d(self.grid, self.grid, self.width)
            table = jnp.concatenate([jnp.zeros((lead, self.width)), fixed])
        return table[:1] if lead else None, table[lead:]

    def _rotation(self, lead: int, has_class: bool, kept_BxK: jax.Array | None) -> jax.Array:
        """The table for `rope.rotate`, [2, 1 or B, N, d/2], of all tokens."""
        rope, size = ROPES[self.rope], head_size(self.width, self.heads)
        table = rope_table(rope, self.grid, size, grid=self.rope_grid, class_token=has_class)
        angles = None
        if rope.learned_class and has_class:
            init, shape = nn.initializers.normal((size // 2) ** -0.5), (1, size // 2)
            angles = parameter(self, "rope_class", init, shape, (None, None), self.param_dtype)
        if kept_BxK is None:
            return with_prefix(table[:, None], lead, angles)
        return with_prefix(jnp.asarray(table)[:, kept_BxK], lead, angles)

    def _pooled(
        self, x_BxNxW: jax.Array, has_class: bool, lead: int, real_BxN: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """(pooled, tokens) of what the blocks made; the first `lead` tokens are no patches."""
        x, dtypes = x_BxNxW, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = LayerNorm(self.eps, name="norm_post", **dtypes)
        if self.final_norm == "tokens" and self.pool != "attention":
            x = norm(x)
        # What "map" and "attention" pool: everything but the registers.
        real = None if real_BxN is None else real_BxN[:, lead:]
        seen, seen_real = patches, real = x[:, lead:], real
        if has_class and self.pool in ("map", "attention"):
            seen = jnp.concatenate([x[:, :1], patches], axis=1)
            if real is not None:
                seen_real = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
        heads = self.pool_heads or self.heads
        if self.pool == "class":
            pooled = x[:, 0]
        elif self.pool == "average" and real is None:
            pooled = jnp.mean(patches, axis=1)
        elif self.pool == "average":
            weights = real[..., None].astype(jnp.float32)
            total = jnp.sum(patches * weights, axis=1)
            pooled = (total / jnp.sum(weights, axis=1)).astype(self.dtype)
        elif self.pool == "map":
            mlp_dim = round((self.pool_mlp_ratio or self.mlp_ratio) * self.width)
            pool = MapPool(heads, mlp_dim, self.activation, self.eps, name="pool", **dtypes)
            pooled = pool(seen, seen_real)
        else:
            pool = AttentionPool(
                self.pool_queries,
                self.pool_width or self.width,
                heads,
                self.eps,
                name="pool",
                **dtypes,
            )
            queries = pool(seen, seen_real)
            if self.final_norm == "tokens":
                queries = norm(queries)
            pooled, patches = queries[:, 0], queries[:, 1:]
        if self.final_norm == "pooled":
            pooled = norm(pooled)
        return pooled, patches

    def _check(self, shape: tuple[int, ...], image_shape: jax.Array | None, training: bool) -> None:
        """Refuses settings and pictures that do not fit together."""
        choices = {
            "stem": ("patch", "conv"),
            "pool": ("class", "average", "map", "attention"),
            "positions": ("learned", "sincos_2d", "naflex", "none"),
            "final_norm": ("tokens", "pooled"),
            "rope": (None, *ROPES),
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
        if not 0.0 <= self.patch_dropout < 1.0:
            raise UserError(
                f"patch_dropout must be at least 0 and below 1, not {self.patch_dropout}."
            )
        if self.pool == "class" and self.class_token is False:
            raise UserError("The image tower's pool='class' needs a class token; set class_token.")
        if self.pool == "attention" and self.pool_queries < 1:
            raise UserError(f"pool_queries must be at least 1, not {self.pool_queries}.")
        if self.positions == "naflex":
            if self.stem != "patch" or self.rope is not None:
                raise UserError("positions='naflex' goes with stem='patch' and rope=None only.")
            if training and self.patch_dropout and len(shape) == 3:
                raise UserError("patch_dropout takes whole pictures, not flattened patches.")
            check_pictures(shape, image_shape, self.patch)
        elif image_shape is not None:
            raise UserError(
                "The batch has image_shape, which only an image tower with positions='naflex' takes."
            )
        elif shape[1:] != (self.size, self.size, 3):
            raise UserError(
                f"The image tower takes pictures [{self.size}, {self.size}, 3], not {list(shape[1:])}."
            )
