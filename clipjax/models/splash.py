"""Splash attention on TPUs: JAX's fused kernel, for any number of tokens and any mesh."""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from clipjax.mesh import RULES

LANES = 128  # a block is a multiple of it
MAX_BLOCK = 1024  # the scores of a block pair, 4 MiB in float32, stay in a core's vector memory


def splash_attention(
    query_BxNxHxd: jax.Array,
    key_BxMxHxd: jax.Array,
    value_BxMxHxd: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
) -> jax.Array:
    """Attention that never stores the N x M scores; arguments as in `attention.dot_product_attention`.

    XLA cannot split a kernel over devices, so it runs under `shard_map` over the ambient mesh (`jax.set_mesh`): the
    batch over `data` and `fsdp`, heads over `tensor`; what does not divide is computed whole on every device. Tokens
    are padded to whole blocks, which the mask hides.

    Args:
      query_BxNxHxd: queries.
      key_BxMxHxd: keys.
      value_BxMxHxd: values.
      mask: bool [1 or B, 1, 1, M]; False keys get no attention.
      causal: whether query n sees only the keys up to n.

    Returns:
      [B, N, H, d] in the dtype of the values.
    """
    batch, _, heads, size = query_BxNxHxd.shape
    # In float32: rounded to bfloat16 the scale of heads of 72, say, would be off by 2e-3.
    query = (query_BxNxHxd.astype(jnp.float32) * size**-0.5).astype(query_BxNxHxd.dtype)
    arrays = query, key_BxMxHxd, value_BxMxHxd
    seen_BxM = None
    if mask is not None:
        seen_BxM = jnp.broadcast_to(mask[:, 0, 0], (batch, key_BxMxHxd.shape[1]))

    def local(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array | None):
        return _one_device(query, key, value, seen, causal)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(*arrays, seen_BxM)
    rows, columns = _axes("batch", batch, mesh), _axes("heads", heads, mesh)
    spec = PartitionSpec(rows, None, columns, None)
    specs = (spec, spec, spec, None if seen_BxM is None else PartitionSpec(rows, None))
    return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(*arrays, seen_BxM)


def _axes(name: str, size: int, mesh: jax.sharding.AbstractMesh) -> tuple[str, ...] | None:
    """The mesh axes over which a dimension of this meaning is split; None if they do not divide it."""
    axes = dict(RULES)[name]
    axes = (axes,) if isinstance(axes, str) else axes
    return None if size % math.prod(mesh.shape[a] for a in axes) else axes


def _one_device(
    query_BxNxHxd: jax.Array,
    key_BxMxHxd: jax.Array,
    value_BxMxHxd: jax.Array,
    seen_BxM: jax.Array | None,
    causal: bool,
) -> jax.Array:
    batch, queries, heads, _ = query_BxNxHxd.shape
    keys = key_BxMxHxd.shape[1]
    block_q, padded_q = _blocks(queries)
    block_kv, padded_kv = _blocks(keys)
    kind = masks.CausalMask if causal else masks.FullMask
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([kind((padded_q, padded_kv))] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
    )
    segments, where = None, None
    # Behind the diagonal padded keys are out of sight already.
    if seen_BxM is not None or (padded_kv > keys and not causal):
        seen = jnp.ones((batch, keys), bool) if seen_BxM is None else seen_BxM
        ids = jnp.pad(seen, ((0, 0), (0, padded_kv - keys))).astype(jnp.int32)
        # Queries are of segment 1, as the keys that they may see; padded queries too, and are cut off again.
        segments = kernels.SegmentIds(jnp.ones(padded_q, jnp.int32), ids)
        where = kernels.SegmentIds(None, 0)

    def heads_first(x_BxNxHxd: jax.Array, padded: int) -> jax.Array:
        x = x_BxNxHxd.swapaxes(1, 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, padded - x.shape[2]), (0, 0)))

    y_BxHxNxd = jax.vmap(kernel, in_axes=(0, 0, 0, where))(
        heads_first(query_BxNxHxd, padded_q),
        heads_first(key_BxMxHxd, padded_kv),
        heads_first(value_BxMxHxd, padded_kv),
        segments,
    )
    return y_BxHxNxd[:, :, :queries].swapaxes(1, 2)


def _blocks(tokens: int) -> tuple[int, int]:
    """(block, padded length): as few blocks as `MAX_BLOCK` allows, all of one size."""
    count = math.ceil(tokens / MAX_BLOCK)
    block = math.ceil(tokens / count / LANES) * LANES
    return block, count * block
