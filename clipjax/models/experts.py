"""A sum over experts, MLPs that each see some of the tokens: how it is computed, and by which device.

On TPUs the tokens are sorted by expert and multiplied group by group (`jax.lax.ragged_dot`): the work of K MLPs, for K
experts a token. For other devices XLA makes of that a masked product for each of the E experts over all chosen rows,
the work of E K MLPs. So there every expert sees every token, the work of E, which is two to six times faster on a CPU.
The results are the same.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from clipjax.mesh import RULES
from clipjax.platform import target_platform

# Name of a layer -> kernels [E, in, out] and biases [E, out].
Experts = Mapping[str, tuple[jax.Array, jax.Array]]
Mlp = Callable[[Callable[[str, jax.Array], jax.Array], jax.Array], jax.Array]


def apply_experts(
    x_TxW: jax.Array, weights_TxK: jax.Array, index_TxK: jax.Array, layers: Experts, mlp: Mlp
) -> jax.Array:
    """The weighted sum of what each token's experts make of it, [T, W] in the dtype of x.

    Under a mesh (`jax.set_mesh`) each device sees the tokens of its samples, and the experts and the columns of theirs
    that it holds (`expert`, `tensor`); what does not divide is computed whole on every device.

    Args:
      x_TxW: tokens.
      weights_TxK: float32 weights of a token's experts.
      index_TxK: which experts.
      layers: of the experts; `fc_out`, and those into the hidden layer.
      mlp: a function `(layer, x) -> y` that calls `layer(name, x)` for the products.
    """
    compute = _sorted if target_platform() == "tpu" else _every
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        start_TxW = jnp.zeros(x_TxW.shape, jnp.float32)
        return compute(start_TxW, x_TxW, weights_TxK, index_TxK, layers, mlp)
    experts, columns, _ = layers["fc_out"][0].shape
    rows, expert = _axes("batch", len(x_TxW), mesh), _axes("expert", experts, mesh)
    column = _axes("mlp", columns, mesh)

    def local(x, weights, index, layers):
        # Said here, so that the gradient is summed over these devices once, for each token.
        x, weights, index = (
            jax.lax.pcast(a, (*expert, *column), to="varying") for a in (x, weights, index)
        )
        kernel, bias = layers["fc_out"]
        if expert:
            index = index - jax.lax.axis_index(expert) * len(kernel)
        if column:  # the bias is added by one of those that share an expert
            bias = jnp.where(jax.lax.axis_index(column) == 0, bias, 0)
        start = jnp.zeros(x.shape, jnp.float32)
        start = jax.lax.pcast(start, (*rows, *expert, *column), to="varying")
        y = compute(start, x, weights, index, layers | {"fc_out": (kernel, bias)}, mlp)
        return jax.lax.psum(y, (*expert, *column))

    tokens, e, c = PartitionSpec(rows, None), expert or None, column or None
    specs = {name: (PartitionSpec(e, None, c), PartitionSpec(e, c)) for name in layers}
    specs["fc_out"] = (PartitionSpec(e, c, None), PartitionSpec(e, None))
    return jax.shard_map(local, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens)(
        x_TxW, weights_TxK, index_TxK, layers
    )


def _axes(name: str, size: int, mesh: jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """The mesh axes of more than one device over which a dimension of this meaning is split."""
    axes = dict(RULES)[name]
    axes = (axes,) if isinstance(axes, str) else axes
    axes = tuple(a for a in axes if mesh.shape[a] > 1)
    return () if size % math.prod(mesh.shape[a] for a in axes) else axes


def _every(
    start_TxW: jax.Array,
    x_TxW: jax.Array,
    weights_TxK: jax.Array,
    index_TxK: jax.Array,
    layers: Experts,
    mlp: Mlp,
) -> jax.Array:
    """Expert after expert over all tokens. Indices below 0 and from E on belong to other devices."""
    experts = len(layers["fc_out"][0])
    gates_TxE = jnp.sum(weights_TxK[..., None] * jax.nn.one_hot(index_TxK, experts), axis=1)

    def add(total, expert):
        layers, gate_T = expert

        def layer(name: str, x: jax.Array) -> jax.Array:
            kernel, bias = layers[name]
            return x @ kernel + bias

        return total + gate_T[:, None] * mlp(layer, x_TxW).astype(jnp.float32), None

    total, _ = jax.lax.scan(add, start_TxW, (layers, gates_TxE.T))
    return total.astype(x_TxW.dtype)


def _sorted(
    start_TxW: jax.Array,
    x_TxW: jax.Array,
    weights_TxK: jax.Array,
    index_TxK: jax.Array,
    layers: Experts,
    mlp: Mlp,
) -> jax.Array:
    """Each expert over its own tokens, which stand together. Indices below 0 and from E on belong to other devices."""
    experts, per_token = len(layers["fc_out"][0]), index_TxK.shape[1]
    here = (index_TxK >= 0) & (index_TxK < experts)
    expert_R = jnp.where(here, index_TxK, experts).reshape(-1)  # others' rows come last
    order_R = jnp.argsort(expert_R, stable=True)
    expert_R = expert_R[order_R]
    sizes_E = jnp.bincount(expert_R, length=experts + 1)[:experts].astype(jnp.int32)
    row_R, here_Rx1 = order_R // per_token, (expert_R < experts)[:, None]

    def layer(name: str, x: jax.Array) -> jax.Array:
        kernel, bias = layers[name]
        # What the product leaves in others' rows is anybody's guess, and must not reach derivatives either.
        y = jax.lax.ragged_dot(jnp.where(here_Rx1, x, 0), kernel, sizes_E)
        return jnp.where(here_Rx1, y + bias[jnp.minimum(expert_R, experts - 1)], 0)

    y_RxW = mlp(layer, x_TxW[row_R]).astype(jnp.float32)
    y_RxW = y_RxW * weights_TxK.reshape(-1)[order_R][:, None]
    return start_TxW.at[row_R].add(y_RxW).astype(x_TxW.dtype)
