"""BERT text tower (Devlin et al. 2019): post-norm encoder with learned positions and exact GELU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clipjax.errors import UserError
from clipjax.models.attention import head_size


def _dense(width: int, axes: tuple[str, str], dtype: Any, name: str) -> nn.Dense:
    """A dense layer whose kernel [in, out] names its axes for sharding."""
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    bias = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
    return nn.Dense(width, dtype=dtype, kernel_init=init, bias_init=bias, name=name)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens of `mask_BxL`."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Maps [B, L, W] to [B, L, W]; keys where the mask is False get no weight."""
        batch, length, width = x_BxLxW.shape

        def project(name: str) -> jax.Array:
            y = _dense(width, ("embed", "heads"), self.dtype, name)(x_BxLxW)
            return y.reshape(batch, length, self.heads, width // self.heads)

        query, key, value = project("query"), project("key"), project("value")
        y_BxLxHxK = jax.nn.dot_product_attention(query, key, value, mask=mask_BxL[:, None, None, :])
        y_BxLxW = y_BxLxHxK.reshape(batch, length, width)
        return _dense(width, ("heads", "embed"), self.dtype, "out")(y_BxLxW)


class Layer(nn.Module):
    """Attention and MLP, each added to its input and then normalised."""

    heads: int
    mlp_dim: int
    norm_epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Maps [B, L, W] to [B, L, W]."""
        width = x_BxLxW.shape[-1]
        y = SelfAttention(self.heads, self.dtype, name="attention")(x_BxLxW, mask_BxL)
        x = nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32, name="attention_norm")(x_BxLxW + y)
        y = _dense(self.mlp_dim, ("embed", "mlp"), self.dtype, "mlp_in")(x)
        y = nn.gelu(y, approximate=False)
        y = _dense(width, ("mlp", "embed"), self.dtype, "mlp_out")(y)
        return nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32, name="mlp_norm")(x + y)


class Bert(nn.Module):
    """BERT encoder without a pooler; the defaults are all-MiniLM-L6-v2, 22.6 M parameters.

    Token ids equal to `pad_id` are masked out of attention and pooling. Every token has type 0, as
    single sentences do. Layers are unrolled: on a CPU a scan over them costs a fifth of the speed.

    Attributes:
        length: tokens of the texts that the pipeline makes, at most `max_positions`.
        norm_epsilon: of every layer norm.
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
        x = tokens[text_BxL] + positions[:length] + types[0]
        x = nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32, name="embedding_norm")(x)
        mask_BxL = text_BxL != self.pad_id
        if mask is not None:
            mask_BxL = mask_BxL & mask
        for index in range(self.depth):
            layer = Layer(
                self.heads, self.mlp_dim, self.norm_epsilon, self.dtype, name=f"layer_{index}"
            )
            x = layer(x, mask_BxL)
        weight_BxLx1 = mask_BxL[..., None].astype(jnp.float32)
        count_Bx1 = jnp.maximum(weight_BxLx1.sum(axis=1), 1)
        return (x * weight_BxLx1).sum(axis=1) / count_Bx1, x
