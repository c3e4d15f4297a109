"""Multi-head attention: self-attention for the blocks, and the scaled dot product they share with MAP pooling."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import Dense, LayerNorm, matmul, parameter


def head_size(width: int, heads: int) -> int:
    """Width of one head; UserError if there are none or they do not divide the width."""
    if heads < 1:
        raise UserError(f"Attention needs at least 1 head, not {heads}.")
    if width % heads:
        raise UserError(
            f"A width of {width} cannot be split into {heads} heads; choose heads that divide it."
        )
    return width // heads


def dot_product_attention(
    query_BxNxHxd: jax.Array,
    key_BxMxHxd: jax.Array,
    value_BxMxHxd: jax.Array,
    mask: jax.Array | None = None,
) -> jax.Array:
    """softmax(q kT / sqrt(d)) v, with the softmax in float32.

    Args:
      query_BxNxHxd: queries.
      key_BxMxHxd: keys.
      value_BxMxHxd: values.
      mask: bool, broadcastable to [B, H, N, M]; False entries get no attention.

    Returns:
      [B, N, H, d] in the dtype of the values.
    """
    # Heads before rows: one batched product over contiguous matrices, instead of a copy for each of them.
    query, key, value = (x.swapaxes(1, 2) for x in (query_BxNxHxd, key_BxMxHxd, value_BxMxHxd))
    logits_BxHxNxM = jnp.einsum(
        "bhnd,bhmd->bhnm", query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32
    )
    if mask is not None:
        logits_BxHxNxM = jnp.where(mask, logits_BxHxNxM, jnp.finfo(jnp.float32).min)
    weights_BxHxNxM = jax.nn.softmax(logits_BxHxNxM, axis=-1).astype(value.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", weights_BxHxNxM, value).swapaxes(1, 2)


class SelfAttention(nn.Module):
    """Self-attention with one fused query-key-value kernel of shape [W, 3, H, d].

    Attributes:
      heads: number of heads, a divisor of the width.
      qk_norm: LayerNorm over each head's queries and keys (Dehghani et al. 2023, ViT-22B, section 2.1).
      out_std: standard deviation of the output kernel's initialisation.
    """

    heads: int
    qk_norm: bool = False
    out_std: float | None = None
    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxNxW: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, N, W] -> [B, N, W]; `mask` as in `dot_product_attention`."""
        *_, width = x_BxNxW.shape
        size = head_size(width, self.heads)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        kernel = parameter(
            self,
            "qkv_kernel",
            nn.initializers.normal(width**-0.5),
            (width, 3, self.heads, size),
            ("embed", None, "heads", None),
            self.param_dtype,
        )
        bias = parameter(
            self,
            "qkv_bias",
            nn.initializers.zeros,
            (3, self.heads, size),
            (None, "heads", None),
            self.param_dtype,
        )
        qkv = matmul(
            x_BxNxW.astype(self.dtype), kernel.astype(self.dtype).reshape(width, 3 * width)
        )
        qkv = qkv + bias.astype(self.dtype).reshape(3 * width)
        heads = (*x_BxNxW.shape[:-1], self.heads, size)
        query, key, value = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        if self.qk_norm:
            query = LayerNorm(self.eps, name="query_norm", **dtypes)(query)
            key = LayerNorm(self.eps, name="key_norm", **dtypes)(key)
        y = dot_product_attention(query, key, value, mask).reshape(x_BxNxW.shape)
        return Dense(width, ("heads", "embed"), self.out_std or width**-0.5, name="out", **dtypes)(
            y
        )
