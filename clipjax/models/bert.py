"""BERT text tower (Devlin et al. 2019): post-norm encoder with learned positions and exact GELU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clipjax.errors import UserError
from clipjax.models.attention import dot_product_attention, head_size
from clipjax.models.layers import Dense, activation
from clipjax.models.lookup import lookup

INIT_STD = 0.02


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens of `mask_BxL`. Settings as in `Bert`."""

    heads: int
    attention_impl: str = "einsum"
    quantize: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Maps [B, L, W] to [B, L, W]; keys where the mask is False get no weight."""
        batch, length, width = x_BxLxW.shape

        how = dict(quantize=self.quantize, dtype=self.dtype)

        def project(name: str) -> jax.Array:
            y = Dense(width, ("embed", "heads"), INIT_STD, name=name, **how)(x_BxLxW)
            return y.reshape(batch, length, self.heads, width // self.heads)

        y_BxLxHxK = dot_product_attention(
            project("query"),
            project("key"),
            project("value"),
            mask_BxL[:, None, None, :],
            implementation=self.attention_impl,
        )
        y_BxLxW = y_BxLxHxK.reshape(batch, length, width)
        return Dense(width, ("heads", "embed"), INIT_STD, name="out", **how)(y_BxLxW)


class Layer(nn.Module):
    """Attention and MLP, each added to its input and then normalised. Settings as in `Bert`."""

    heads: int
    mlp_dim: int
    norm_epsilon: float
    attention_impl: str = "einsum"
    quantize: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Maps [B, L, W] to [B, L, W]."""
        width = x_BxLxW.shape[-1]
        how = dict(quantize=self.quantize, dtype=self.dtype)
        y = SelfAttention(self.heads, attention_impl=self.attention_impl, name="attention", **how)(
            x_BxLxW, mask_BxL
        )
        x = nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32, name="attention_norm")(x_BxLxW + y)
        y = Dense(self.mlp_dim, ("embed", "mlp"), INIT_STD, name="mlp_in", **how)(x)
        y = activation("gelu")(y)
        y = Dense(width, ("mlp", "embed"), INIT_STD, name="mlp_out", **how)(y)
        return nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32, name="mlp_norm")(x + y)


class Bert(nn.Module):
    """BERT encoder without a pooler; the defaults are all-MiniLM-L6-v2, 22.6 M parameters.

    Token ids equal to `pad_id` are masked out of attention and pooling. Every token has type 0, as
    single sentences do. Layers are unrolled: on a CPU a scan over them costs a fifth of the speed.

    Attributes:
        length: tokens of the texts that the pipeline makes, at most `max_positions`.
        norm_epsilon: of every layer norm.
        attention_impl, quantize: see clipjax/models/attention.py and quantize.py.
        dtype: of the matrix products; norms, softmax and outputs are float32.
        param_dtype: every tower takes it; the parameters of this one are always float32.
    """

    length: int = 128
    vocab_size: int = 30522
    width: int = 384
    depth: int = 6
    heads: int = 12
    mlp_dim: int = 1536
    max_positions: int = 512
    type_vocab: int = 2
    pad_id: int = 0
    norm_epsilon: float = 1e-12
    attention_impl: str = "einsum"
    quantize: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        text_BxL: jax.Array,
        *,
        mask: jax.Array | None = None,
        sample_seed: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds token ids.

        Args:
            text_BxL: int32; L at most `max_positions`.
            mask: bool [B, L], False where nobody may attend, on top of the padding.
            sample_seed: not used; every tower takes it.

        Returns:
            (pooled [B, W], the mean over the tokens that are not padding, and tokens [B, L, W]),
            both float32. A row of nothing but padding pools to zeros.

        Raises:
            UserError: if L exceeds `max_positions` or `heads` does not divide `width`.
        """
        del sample_seed
        head_size(self.width, self.heads)
        length = text_BxL.shape[1]
        if length > self.max_positions:
            raise UserError(
                f"The text tower takes at most {self.max_positions} tokens, not {length}."
            )

        def table(name: str, rows: int, axis: str | None = None) -> jax.Array:
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
            return self.param(name, init, (rows, self.width), jnp.float32)

        tokens = table("token_embedding", self.vocab_size, "vocab")
        positions = table("position_embedding", self.max_positions)
        types = table("type_embedding", self.type_vocab)
        x = lookup(tokens, text_BxL) + positions[:length] + types[0]
        x = nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32, name="embedding_norm")(x)
        mask_BxL = text_BxL != self.pad_id
        if mask is not None:
            mask_BxL = mask_BxL & mask
        for index in range(self.depth):
            layer = Layer(
                self.heads,
                self.mlp_dim,
                self.norm_epsilon,
                self.attention_impl,
                self.quantize,
                self.dtype,
                name=f"layer_{index}",
            )
            x = layer(x, mask_BxL)
        weight_BxLx1 = mask_BxL[..., None].astype(jnp.float32)
        count_Bx1 = jnp.maximum(weight_BxLx1.sum(axis=1), 1)
        return (x * weight_BxLx1).sum(axis=1) / count_Bx1, x
