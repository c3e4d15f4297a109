"""From tokens to one vector."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.models.attention import dot_product_attention, head_size
from clipjax.models.layers import Dense, LayerNorm, parameter
from clipjax.models.mlp import Mlp
from clipjax.models.options import BlockOptions


class MapPool(nn.Module):
    """Multi-head attention pooling: one learned probe attends to all tokens (Zhai et al. 2022, section 2.1)."""

    heads: int
    mlp_dim: int
    activation: str = "gelu"
    eps: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxNxW: jax.Array, mask_BxN: jax.Array | None = None) -> jax.Array:
        """[B, N, W] -> [B, W]. Tokens where `mask_BxN` is False are not seen."""
        batch, tokens, width = x_BxNxW.shape
        size = head_size(width, self.heads)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        probe = parameter(
            self,
            "probe",
            nn.initializers.xavier_uniform(),
            (1, width),
            (None, "embed"),
            self.param_dtype,
        )
        x = x_BxNxW.astype(self.dtype)

        def project(name: str, y: jax.Array) -> jax.Array:
            return Dense(width, ("embed", "heads"), width**-0.5, name=name, **dtypes)(y)

        query = project("query", probe.astype(self.dtype)).reshape(1, 1, self.heads, size)
        key = project("key", x).reshape(batch, tokens, self.heads, size)
        value = project("value", x).reshape(batch, tokens, self.heads, size)
        mask = None if mask_BxN is None else mask_BxN[:, None, None, :]
        query = jnp.broadcast_to(query, (batch, 1, self.heads, size))
        y = dot_product_attention(query, key, value, mask).reshape(batch, width)
        y = Dense(width, ("heads", "embed"), width**-0.5, name="out", **dtypes)(y)
        z = LayerNorm(self.eps, name="norm", **dtypes)(y)
        mlp = BlockOptions(self.heads, self.mlp_dim, self.activation, self.eps, **dtypes)
        return y + Mlp(mlp, name="mlp")(z)


class AttentionPool(nn.Module):
    """Several learned queries attend to all tokens (Yu et al. 2022, CoCa, section 3.2; as in open_clip).

    Parameters: `query` [n, D]; `norm_query`, `norm_key`; `to_query`, `to_key`, `to_value` and `out`, all with biases.

    Attributes:
      queries: how many, n.
      width: D, of the queries and of the result.
      heads: a divisor of it.
    """

    queries: int
    width: int
    heads: int
    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxNxW: jax.Array, mask_BxN: jax.Array | None = None) -> jax.Array:
        """[B, N, W] -> [B, n, D]. Tokens where `mask_BxN` is False are not seen."""
        batch, size = len(x_BxNxW), head_size(self.width, self.heads)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        init = nn.initializers.normal(self.width**-0.5)
        shape = (self.queries, self.width)
        query = parameter(self, "query", init, shape, (None, "embed"), self.param_dtype)

        def project(name: str, x: jax.Array) -> jax.Array:
            std = x.shape[-1] ** -0.5
            y = Dense(self.width, ("embed", "heads"), std, name=name, **dtypes)(x)
            return y.reshape(*x.shape[:-1], self.heads, size)

        query = project("to_query", LayerNorm(self.eps, name="norm_query", **dtypes)(query))
        x = LayerNorm(self.eps, name="norm_key", **dtypes)(x_BxNxW)
        query = jnp.broadcast_to(query, (batch, *query.shape))
        mask = None if mask_BxN is None else mask_BxN[:, None, None, :]
        y = dot_product_attention(query, project("to_key", x), project("to_value", x), mask)
        y = y.reshape(batch, self.queries, self.width)
        return Dense(self.width, ("heads", "embed"), self.width**-0.5, name="out", **dtypes)(y)


def token_at(x_BxLxW: jax.Array, position_B: jax.Array) -> jax.Array:
    """Row `position_B[i]` of sample i: [B, L, W] -> [B, W]."""
    return jnp.take_along_axis(x_BxLxW, position_B[:, None, None], axis=1)[:, 0]
