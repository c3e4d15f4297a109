"""The vision transformer (Dosovitskiy et al. 2021) with the options that CLIP-like models use."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.attention import head_size
from clipjax.models.layer_inputs import DeepPrompts, Taps
from clipjax.models.layers import LayerNorm, parameter
from clipjax.models.naflex import check_images, real_patches, resized_positions
from clipjax.models.options import block_options
from clipjax.models.patches import PatchEmbedding, kept_patches
from clipjax.models.pooling import AttentionPool, MapPool
from clipjax.models.rope import ROPES, rope_table, with_prefix, with_suffix
from clipjax.models.stems import ConvStem
from clipjax.models.transformer import Transformer
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


class ViT(nn.Module):
    """Vision transformer: patches, positions, blocks, pooling.

    Attributes:
      size: image height and width in pixels.
      stem: "patch" (one matrix product) or "conv" (`ConvStem`).
      pool: "class" (class token), "average" (of the patches), "map" (`MapPool` over patches and the class token, if
        there is one), or "attention" (`AttentionPool` over the same: its first query is what is pooled).
      class_token: whether there is one; None: only if that is what is pooled.
      class_position: whether the class token has a learned position as well.
      positions: "learned", "sincos_2d", "naflex" (images of any shape, see clipjax/models/naflex.py), or "none".
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
      dropout, drop_path: as there; only where a `sample_seed` is given.
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
    dropout: float = 0.0
    drop_path: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch

    def embed(self, image: jax.Array, *, image_shape: jax.Array | None = None) -> jax.Array:
        """Normalised images -> patch embeddings [B, N, W] in the compute dtype, without positions.

        With changes, they can be given to the tower in place of the images' own; here masked ones are learned:

        >>> patches = jnp.where(masked_BxNx1, mask_token_W, tower.embed(image))
        >>> pooled, tokens = tower(None, embeddings=patches)

        Args:
          image: as for `__call__`.
          image_shape: as there; embeddings of flattened patches need it as well.
        """
        return self(image, image_shape=image_shape, only_embed=True)

    @nn.compact
    def __call__(
        self,
        image: jax.Array | None,
        *,
        image_shape: jax.Array | None = None,
        sample_seed: jax.Array | None = None,
        embeddings: jax.Array | None = None,
        extra_tokens: jax.Array | None = None,
        deep_prompts: DeepPrompts | None = None,
        taps: Taps | None = None,
        only_embed: bool = False,
    ) -> Any:
        """Encodes normalised images.

        With prompts that are appended to the image's tokens, and renewed in the next two layers:

        >>> pooled, tokens = tower(
        ...     pixels, extra_tokens=prompts[0], deep_prompts=DeepPrompts(prompts[1:3], slot=-n, first=1)
        ... )

        Args:
          image: float images [B, H, W, 3] of `size` x `size`, with positions="naflex" of any sides that `patch`
            divides; or then, images of several shapes as flattened patches [B, N, 3pp]. None with `embeddings`.
          image_shape: with flattened patches, int32 [B, 2]: rows and columns of each image, rows * columns at most N;
            what comes after these is padding.
          sample_seed: uint32 [B] while training; None at inference, where nothing is dropped.
          embeddings: [B, N, W] in place of `embed(image)`; positions are added to them as to these.
          extra_tokens: [n, W] or [B, n, W], appended to the sequence, before `pre_norm`; without positions, and not
            among what is pooled or returned.
          deep_prompts: tokens that replace others at the entry of layers.
          taps: intermediate results to return.
          only_embed: see `embed`.

        Returns:
          pooled [B, W] and patch tokens [B, N, W] after the final norm. With pool="attention", pooled [B, D] and the
          other queries' tokens [B, n - 1, D]. With `taps` also the dict that `Taps` describes.
        """
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        training, flat = sample_seed is not None, image_shape is not None
        if embeddings is None:
            self._check(image.shape, image_shape, training)
            x = self._stem()(image)
            if self.positions == "naflex" and image_shape is None:
                image_shape = jnp.array([x.shape[1:3]])
            x = x.reshape(len(x), -1, self.width)
        else:
            self._check_embeddings(embeddings.shape, image, image_shape, training)
            x = embeddings.astype(self.dtype)
        if only_embed:
            return x
        batch = len(x)
        real_BxN = real_patches(image_shape, x.shape[1]) if flat else None
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
        behind = 0
        if extra_tokens is not None:
            x, behind = self._appended(x, extra_tokens), extra_tokens.shape[-2]
        if real_BxN is not None:
            real_BxN = jnp.pad(real_BxN, ((0, 0), (lead, behind)), constant_values=True)

        if self.pre_norm:
            x = LayerNorm(self.eps, name="norm_pre", **dtypes)(x)
        rotation, how = None, {}
        if self.rope is not None:
            rotation = with_suffix(self._rotation(lead, has_class, kept_BxK), behind)
            how = dict(rotation=ROPES[self.rope].pairs)
        options = block_options(self, mlp_dim=round(self.mlp_ratio * self.width), **how)
        blocks = Transformer(
            self.depth, options, self.remat, self.unroll, self.moe_layers, name="transformer"
        )
        mask = None if real_BxN is None else real_BxN[:, None, None, :]
        asked = dict(deep_prompts=deep_prompts, taps=taps)
        x = blocks(x, mask, rotation, sample_seed=sample_seed, **asked)
        x, found = (x, None) if taps is None else x
        if behind:
            x, real_BxN = x[:, :-behind], None if real_BxN is None else real_BxN[:, :-behind]
        pooled, tokens = self._pooled(x, has_class, lead, real_BxN)
        return (pooled, tokens) if found is None else (pooled, tokens, found)

    def _stem(self) -> nn.Module:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.stem == "conv":
            how = self.patch, self.width, self.activation, self.eps
            return ConvStem(*how, name="stem", **dtypes)
        return PatchEmbedding(self.patch, self.width, self.patch_bias, name="stem", **dtypes)

    def _appended(self, x_BxNxW: jax.Array, extra: jax.Array) -> jax.Array:
        """The sequence with extra tokens [n, W] or [B, n, W] at its end."""
        batch = len(x_BxNxW)
        if extra.ndim < 2 or (*extra.shape[:-2], extra.shape[-1]) not in (
            (self.width,),
            (batch, self.width),
        ):
            raise UserError(
                f"The image tower takes extra_tokens [n, {self.width}] or [{batch}, n, {self.width}], "
                f"not {list(extra.shape)}."
            )
        extra = jnp.broadcast_to(extra.astype(self.dtype), (batch, *extra.shape[-2:]))
        return jnp.concatenate([x_BxNxW, extra], axis=1)

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

    def _check_embeddings(
        self,
        shape: tuple[int, ...],
        image: jax.Array | None,
        image_shape: jax.Array | None,
        training: bool,
    ) -> None:
        """Refuses embeddings that are not those of this tower's patches."""
        naflex = self.positions == "naflex"
        if image is not None:
            raise UserError("The image tower takes an image or embeddings, not both; give None.")
        if naflex and image_shape is None:
            raise UserError("Embeddings for a tower with positions='naflex' need an image_shape.")
        if len(shape) != 3 or shape[2] != self.width or (not naflex and shape[1] != self.grid**2):
            tokens = "N" if naflex else self.grid**2
            raise UserError(
                f"The image tower takes embeddings [B, {tokens}, {self.width}], not {list(shape)}."
            )
        pixels = (shape[1], 3 * self.patch**2) if naflex else (self.size, self.size, 3)
        self._check((shape[0], *pixels), image_shape, training)

    def _check(self, shape: tuple[int, ...], image_shape: jax.Array | None, training: bool) -> None:
        """Refuses settings and images that do not fit together."""
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
                f"An image of {self.size} px cannot be cut into patches of {self.patch} px."
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
                raise UserError("patch_dropout takes whole images, not flattened patches.")
            check_images(shape, image_shape, self.patch)
        elif image_shape is not None:
            raise UserError(
                "The batch has image_shape, which only an image tower with positions='naflex' takes."
            )
        elif shape[1:] != (self.size, self.size, 3):
            raise UserError(
                f"The image tower takes images [{self.size}, {self.size}, 3], not {list(shape[1:])}."
            )
