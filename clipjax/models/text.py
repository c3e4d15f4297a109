"""The transformer text tower."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import LayerNorm, parameter
from clipjax.models.lookup import lookup
from clipjax.models.options import block_options
from clipjax.models.pooling import MapPool, token_at
from clipjax.models.transformer import Transformer
from clipjax.registry import nearest


class TextTransformer(nn.Module):
    """Token and position embeddings, pre-norm blocks, final norm, pooling.

    Attributes:
      length: number of tokens L.
      attention: "causal" (CLIP) or "full" (SigLIP, CLIPA).
      pool: "eot" (first end-of-text token), "first", "last" (last position, padding or not), "map", or "class".
      end_token: id of the end-of-text token, for pool="eot".
      final_norm: "tokens" normalises all tokens, then pools; "pooled" pools first (CoCa), and leaves the tokens as the
        blocks made them. What is pooled is the same, but for pool="map".
      class_token: whether a learned token is appended to the text (Yu et al. 2022, CoCa), for pool="class".
      pad_id: with a class token, these tokens are not seen.
      class_mask: with a class token, "aligned" hides the padding; "shifted" hides what stands one place behind it: the
        first padding token is seen, and a class token only behind a text that fills all places. CoCa's released weights
        were trained so (open_clip, `TextTransformer._build_additive_mask`).
      moe_layers, remat, unroll: see `Transformer`.
      All others: see `BlockOptions`.
    """

    length: int = 77
    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    attention: str = "causal"
    pool: str = "eot"
    end_token: int = 49407
    activation: str = "gelu"
    layer_scale: float | None = None
    qk_norm: bool = False
    eps: float = 1e-5
    remat: str = "none"
    unroll: int = 1
    attention_impl: str = "einsum"
    quantize: str | None = None
    final_norm: str = "tokens"
    class_token: bool = False
    pad_id: int = 0
    class_mask: str = "shifted"
    experts: int = 0
    experts_per_token: int = 2
    moe_layers: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def sees_padding(self) -> bool:
        """Whether what is pooled depends on the tokens behind a text's end."""
        pooled_before = self.pool in ("eot", "first") and not self.class_token
        return self.attention != "causal" or not pooled_before

    @nn.compact
    def __call__(
        self,
        text_BxL: jax.Array,
        *,
        mask: jax.Array | None = None,
        sample_seed: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes token ids.

        Args:
          text_BxL: int32 ids, L at most `length`.
          mask: bool [B, L], False where nobody may attend; None: everything is seen, as CLIP and SigLIP do.
          sample_seed: not used; every tower takes it.

        Returns:
          pooled [B, W] and tokens [B, L, W] after the final norm; the class token is not among them.
        """
        del sample_seed
        length = text_BxL.shape[1]
        self._check(length)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        embedding = parameter(
            self,
            "token_embedding",
            nn.initializers.normal(0.02),
            (self.vocab_size, self.width),
            ("vocab", "embed"),
            self.param_dtype,
        )
        position = parameter(
            self,
            "position_embedding",
            nn.initializers.normal(0.01),
            (self.length + self.class_token, self.width),
            (None, "embed"),
            self.param_dtype,
        )
        x = (lookup(embedding, text_BxL) + position[:length]).astype(self.dtype)
        if self.class_token:
            init, shape = nn.initializers.normal(0.01), (1, self.width)
            token = parameter(self, "class_token", init, shape, (None, "embed"), self.param_dtype)
            token = (token + position[length : length + 1]).astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(token, (len(x), *shape))], axis=1)
            mask = self._class_mask(text_BxL, mask)
        mlp_dim = round(self.mlp_ratio * self.width)
        options = block_options(self, mlp_dim=mlp_dim, causal=self.attention == "causal")
        blocks = Transformer(
            self.depth, options, self.remat, self.unroll, self.moe_layers, name="transformer"
        )
        x = blocks(x, None if mask is None else mask[:, None, None, :])
        norm = LayerNorm(self.eps, name="norm_post", **dtypes)
        if self.final_norm == "tokens":
            x = norm(x)
        tokens = x[:, :length]
        if self.pool == "eot":
            pooled = token_at(x, jnp.argmax(text_BxL == self.end_token, axis=1))
        elif self.pool == "class":
            pooled = x[:, -1]
        elif self.pool in ("first", "last"):
            pooled = tokens[:, 0 if self.pool == "first" else -1]
        else:
            pool = MapPool(self.heads, mlp_dim, self.activation, self.eps, name="pool", **dtypes)
            pooled = pool(x, mask)
        if self.final_norm == "pooled":
            pooled = norm(pooled)
        return pooled, tokens

    def _class_mask(self, text_BxL: jax.Array, mask_BxL: jax.Array | None) -> jax.Array:
        """Which tokens are seen, bool [B, L + 1]."""
        before = self.class_mask == "shifted"
        real = text_BxL != self.pad_id
        seen = jnp.pad(real, ((0, 0), (1, 0) if before else (0, 1)), constant_values=True)
        if mask_BxL is None:
            return seen
        return seen & jnp.pad(mask_BxL, ((0, 0), (0, 1)), constant_values=True)

    def _check(self, length: int) -> None:
        """Refuses settings and texts that do not fit together."""
        for field, valid in {
            "attention": ("causal", "full"),
            "pool": ("eot", "first", "last", "map", "class"),
            "final_norm": ("tokens", "pooled"),
            "class_mask": ("shifted", "aligned"),
        }.items():
            value = getattr(self, field)
            if value not in valid:
                raise UserError(
                    f"The text tower's {field} cannot be {value!r}{nearest(value, valid)}."
                )
        if self.pool == "class" and not self.class_token:
            raise UserError("The text tower's pool='class' needs class_token=True.")
        if length > self.length:
            raise UserError(f"The text tower takes at most {self.length} tokens, not {length}.")
