"""The transformer text tower."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import LayerNorm, parameter
from clipjax.models.lookup import lookup
from clipjax.models.pooling import MapPool, token_at
from clipjax.models.transformer import Transformer
from clipjax.registry import nearest


class TextTransformer(nn.Module):
    """Token and position embeddings, pre-norm blocks, final norm, pooling.

    Attributes:
      length: number of tokens L.
      attention: "causal" (CLIP) or "full" (SigLIP, CLIPA).
      pool: "eot" (first end-of-text token), "last" (last position, padding or not), or "map".
      end_token: id of the end-of-text token, for pool="eot".
      attention_impl, quantize: see `Transformer`.
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
    dtype: str = "float32"
    param_dtype: str = "float32"

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
          pooled [B, W] and tokens [B, L, W] after the final norm.
        """
        del sample_seed
        for field, valid in {
            "attention": ("causal", "full"),
            "pool": ("eot", "last", "map"),
        }.items():
            value = getattr(self, field)
            if value not in valid:
                raise UserError(
                    f"The text tower's {field} cannot be {value!r}{nearest(value, valid)}."
                )
        length = text_BxL.shape[1]
        if length > self.length:
            raise UserError(f"The text tower takes at most {self.length} tokens, not {length}.")
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
            (self.length, self.width),
            (None, "embed"),
            self.param_dtype,
        )
        x = (lookup(embedding, text_BxL) + position[:length]).astype(self.dtype)
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
            self.attention == "causal",
            self.attention_impl,
            self.quantize,
            name="transformer",
            **dtypes,
        )(x, None if mask is None else mask[:, None, None, :])
        x = LayerNorm(self.eps, name="norm_post", **dtypes)(x)
        if self.pool == "eot":
            pooled = token_at(x, jnp.argmax(text_BxL == self.end_token, axis=1))
        elif self.pool == "last":
            pooled = x[:, -1]
        else:
            pooled = MapPool(self.heads, mlp_dim, self.activation, self.eps, name="pool", **dtypes)(
                x, mask
            )
        return pooled, x
