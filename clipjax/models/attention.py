"""Multi-head attention: one function for every implementation, and self-attention for the blocks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import backend

from clipjax.errors import UserError
from clipjax.models.layers import Dense, LayerNorm, low_rank, matmul, parameter
from clipjax.models.options import BlockOptions
from clipjax.models.rope import rotate
from clipjax.platform import target_platform

QKV = ("query", "key", "value")
IMPLEMENTATIONS = ("auto", "einsum", "xla", "cudnn", "splash")

# Keys from which "auto" takes Splash on a TPU. With fewer, XLA's plain attention moves little and Splash's padding to
# blocks of 128 (197 tokens become 256) costs more products than it saves traffic. See docs/precision.md.
SPLASH_FROM = 1024


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
    *,
    causal: bool = False,
    implementation: str = "einsum",
) -> jax.Array:
    """softmax(q kT / sqrt(d)) v, with the softmax in float32.

    A query that sees no key at all gets some finite average of the values; which one depends on the implementation.

    Args:
      query_BxNxHxd: queries.
      key_BxMxHxd: keys.
      value_BxMxHxd: values.
      mask: bool [1 or B, 1 or H, 1 or N, M]; False entries get no attention.
      causal: whether query n sees only the keys up to n.
      implementation: one of `IMPLEMENTATIONS`, see docs/precision.md.

    Returns:
      [B, N, H, d] in the dtype of the values.

    Raises:
      UserError: the implementation cannot do this, or does not run where the program will.
    """
    arrays = query_BxNxHxd, key_BxMxHxd, value_BxMxHxd
    chosen = choose(implementation, query_BxNxHxd, key_BxMxHxd, mask)
    if chosen == "splash":
        # Imported where it is needed: on TPUs, from an experimental part of JAX.
        from clipjax.models.splash import splash_attention

        return splash_attention(*arrays, mask, causal=causal)
    if chosen == "einsum":
        # Heads before rows: one batched product over contiguous matrices, instead of a copy for each of them.
        heads_first = (x.swapaxes(1, 2) for x in arrays)
        return _attend(*heads_first, _with_causal(mask, causal, query_BxNxHxd.shape[1])).swapaxes(
            1, 2
        )
    if chosen == "cudnn" and mask is not None:
        rows = query_BxNxHxd.shape[1]
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], rows, mask.shape[3]))
    return jax.nn.dot_product_attention(*arrays, mask=mask, is_causal=causal, implementation=chosen)


def choose(
    implementation: str, query_BxNxHxd: jax.Array, key_BxMxHxd: jax.Array, mask: jax.Array | None
) -> str:
    """What "auto" means for these shapes on the target platform; other names pass if they can work.

    Raises:
      UserError: the implementation cannot work here; the reason is named.
    """
    platform = target_platform()
    obstacles = {
        "cudnn": _cudnn_obstacle(query_BxNxHxd, mask, platform),
        "splash": _splash_obstacle(mask, platform),
    }
    if implementation == "auto":
        if obstacles["cudnn"] is None and mask is None:
            return "cudnn"
        if obstacles["splash"] is None and key_BxMxHxd.shape[1] >= SPLASH_FROM:
            return "splash"
        return "einsum"
    obstacle = obstacles.get(implementation)
    if obstacle is not None:
        raise UserError(f"model.attention={implementation!r} {obstacle}; use 'auto' or 'einsum'.")
    return implementation


def _cudnn_obstacle(query: jax.Array, mask: jax.Array | None, platform: str) -> str | None:
    """Why cuDNN's fused attention cannot be used, None if it can (the conditions of jax's own checks)."""
    tokens, _, size = query.shape[1:]
    if platform != "gpu":
        return f"runs on NVIDIA GPUs, and this program is made for {platform}"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16, not {query.dtype}"
    if size % 8 or size > 128:
        return f"takes heads of a width up to 128 that 8 divides, not {size}"
    if mask is not None and (tokens % 2 or mask.shape[3] % 2):
        return f"takes a mask only over an even number of tokens, not {tokens}"
    if not has_cudnn():
        return "can be compiled only on a machine that has an NVIDIA GPU (Ampere or later)"
    return None


def _splash_obstacle(mask: jax.Array | None, platform: str) -> str | None:
    """Why the Splash kernel cannot be used, None if it can."""
    if platform != "tpu":
        return f"runs on TPUs, and this program is made for {platform}"
    if mask is not None and mask.shape[1:3] != (1, 1):
        return "takes masks of keys only, the same for every head and query"
    return None


def has_cudnn() -> bool:
    """Whether this process has an NVIDIA GPU that cuDNN's fused attention runs on."""
    if "cuda" not in backend.get_backend().platform_version:
        return False
    return float(jax.local_devices()[0].compute_capability) >= 8.0


def _with_causal(mask: jax.Array | None, causal: bool, tokens: int) -> jax.Array | None:
    if not causal:
        return mask
    triangle = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
    return triangle if mask is None else triangle & mask


@jax.custom_vjp
def _attend(
    query_BxHxNxd: jax.Array,
    key_BxHxMxd: jax.Array,
    value_BxHxMxd: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    """Attention as two batched products, [B, H, N, d].

    The derivative is written out for two reasons. Autodiff multiplies the float32 gradient of the logits by bfloat16
    keys, a product of mixed dtypes; here every product has operands of the compute dtype and is summed in float32.
    And autodiff keeps the float32 softmax beside its cast; here only the weights in the compute dtype are kept, a third
    of the memory in bfloat16.
    """
    return _forward(query_BxHxNxd, key_BxHxMxd, value_BxHxMxd, mask)[0]


def _forward(query, key, value, mask):
    logits = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    y = jnp.einsum("bhnm,bhmd->bhnd", weights, value)
    return y, (query, key, value, mask, weights)


def weighted_average(
    query_BxNxHxd: jax.Array,
    key_BxMxHxd: jax.Array,
    value_BxMxHxd: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`dot_product_attention`, and the weights it averages by, through which gradients flow as well.

    Returns:
      ([B, N, H, d], weights [B, H, N, M]), both in the dtype of the values; a row of weights sums to 1.
    """
    heads_first = (x.swapaxes(1, 2) for x in (query_BxNxHxd, key_BxMxHxd, value_BxMxHxd))
    y, (*_, weights) = _forward(*heads_first, _with_causal(mask, causal, query_BxNxHxd.shape[1]))
    return y.swapaxes(1, 2), weights


def _backward(residuals, dy):
    query, key, value, mask, weights = residuals
    dvalue = jnp.einsum("bhnm,bhnd->bhmd", weights, dy)
    dweights = jnp.einsum("bhnd,bhmd->bhnm", dy, value, preferred_element_type=jnp.float32)
    weights = weights.astype(jnp.float32)
    dlogits = weights * (dweights - jnp.sum(weights * dweights, axis=-1, keepdims=True))
    if mask is not None:  # matters only where a query sees nothing: its weights are constant
        dlogits = jnp.where(mask, dlogits, 0.0)
    dlogits = (dlogits * query.shape[-1] ** -0.5).astype(query.dtype)
    dquery = jnp.einsum("bhnm,bhmd->bhnd", dlogits, key)
    dkey = jnp.einsum("bhnm,bhnd->bhmd", dlogits, query)
    return dquery, dkey, dvalue, None


_attend.defvjp(_forward, _backward)


class SelfAttention(nn.Module):
    """Self-attention with one fused query-key-value kernel of shape [W, 3, H, d].

    An adapter of queries, keys or values has its factors beside it, see `_adapted`.

    Attributes:
      options: of the block; all but the MLP's count.
      out_std: standard deviation of the output kernel's initialisation; None: W ** -0.5.
    """

    options: BlockOptions
    out_std: float | None = None

    @nn.compact
    def __call__(
        self,
        x_BxNxW: jax.Array,
        mask: jax.Array | None = None,
        rotation: jax.Array | None = None,
        kept: Sequence[str] = (),
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """[B, N, W] -> [B, N, W].

        Args:
          x_BxNxW: tokens.
          mask: as in `dot_product_attention`.
          rotation: a table for `rope.rotate`.
          kept: what else to return, of "query", "key", "value" (each [B, N, H, d], as attention takes them) and
            "attention" (its weights [B, H, N, N]); with any of them attention is computed by "einsum".

        Returns:
          [B, N, W]; with `kept`, a pair of that and a dict of what was asked for, in the compute dtype.
        """
        o = self.options
        *_, width = x_BxNxW.shape
        size = head_size(width, o.heads)
        kernel = parameter(
            self,
            "qkv_kernel",
            nn.initializers.normal(width**-0.5),
            (width, 3, o.heads, size),
            ("embed", None, "heads", None),
            o.param_dtype,
        )
        # Heads first: split by heads (the `tensor` axis), the flattened kernel stays split.
        qkv = matmul(
            x_BxNxW.astype(o.dtype),
            kernel.astype(o.dtype).swapaxes(1, 2).reshape(width, 3 * width),
            o.quantize,
        )
        if o.qkv_bias:
            bias = parameter(
                self,
                "qkv_bias",
                nn.initializers.zeros,
                (3, o.heads, size),
                (None, "heads", None),
                o.param_dtype,
            )
            if not o.key_bias:
                bias = bias.at[1].set(0.0)
            qkv = qkv + bias.astype(o.dtype).swapaxes(0, 1).reshape(3 * width)
        qkv_BxNxHx3xd = qkv.reshape(*x_BxNxW.shape[:-1], o.heads, 3, size)
        query, key, value = (qkv_BxNxHx3xd[..., i, :] for i in range(3))
        if any(map(o.lora, QKV)):
            query, key, value = self._adapted(x_BxNxW, query, key, value)
        if o.qk_norm:
            query = LayerNorm(o.eps, name="query_norm", **o.dtypes)(query)
            key = LayerNorm(o.eps, name="key_norm", **o.dtypes)(key)
        if rotation is not None:
            query, key = (rotate(x, rotation, o.rotation) for x in (query, key))
        found = {"query": query, "key": key, "value": value}
        if kept:
            y, found["attention"] = weighted_average(query, key, value, mask, causal=o.causal)
        else:
            y = dot_product_attention(
                query, key, value, mask, causal=o.causal, implementation=o.attention_impl
            )
        y = y.reshape(x_BxNxW.shape)
        if o.attention_norm:
            y = LayerNorm(o.eps, name="norm", **o.dtypes)(y)
        y = Dense(
            width,
            ("heads", "embed"),
            self.out_std or width**-0.5,
            quantize=o.quantize,
            lora=o.lora("out"),
            name="out",
            **o.dtypes,
        )(y)
        return (y, {name: found[name] for name in kept}) if kept else y

    def _adapted(self, x_BxNxW: jax.Array, *qkv_BxNxHxd: jax.Array) -> list[jax.Array]:
        """Queries, keys and values with what their adapters add.

        Of the t products among them that have one: `lora_a` [W, t, r] and `lora_b` [t, r, H, d].
        """
        o, qkv = self.options, list(qkv_BxNxHxd)
        *_, heads, size = qkv[0].shape
        width, chosen = x_BxNxW.shape[-1], [i for i, name in enumerate(QKV) if o.lora(name)]
        lora = o.lora(QKV[chosen[0]])
        shape_a, shape_b = (width, len(chosen), lora.rank), (len(chosen), lora.rank, heads, size)
        a = low_rank(self, "lora_a", shape_a, ("embed", None, None), o.param_dtype)
        b = low_rank(self, "lora_b", shape_b, (None, None, "heads", None), o.param_dtype)
        a, b = a.astype(o.dtype), b.astype(o.dtype)
        small = matmul(x_BxNxW.astype(o.dtype), a.reshape(width, -1))
        small = small.reshape(*x_BxNxW.shape[:-1], len(chosen), lora.rank)
        for t, i in enumerate(chosen):
            more = matmul(small[..., t, :], b[t].reshape(lora.rank, -1))
            qkv[i] = qkv[i] + lora.scale * more.reshape(qkv[i].shape)
        return qkv
