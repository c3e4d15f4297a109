"""FLOPs counted by hand: 2 for each multiply-add of matrix products and convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from clipjax.cost import flops, hardware


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_dot():
    assert flops.count(jnp.dot, array(3, 5), array(5, 7)) == 2 * 3 * 5 * 7
    assert flops.count(lambda x: jnp.tanh(x) + x.sum(), array(3, 5)) == 0


def test_what_no_result_depends_on_is_not_counted():
    def function(a, b):
        unused = a @ b  # noqa: F841, as XLA leaves it out
        return jax.lax.scan(lambda c, _: (c, (c @ b).sum()), a, length=3)[0], a @ b[:, :2]

    assert flops.count(function, array(3, 5), array(5, 5)) == 2 * 3 * 5 * 2


def test_batched_dot_with_two_contracted_axes():
    count = flops.count(
        lambda a, b: jnp.einsum("nxyi,nxyj->nij", a, b), array(2, 3, 5, 7), array(2, 3, 5, 11)
    )
    assert count == 2 * 2 * 3 * 5 * 7 * 11


@pytest.mark.parametrize("groups", [1, 2])
def test_conv(groups):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    count = flops.count(conv, array(2, 9, 7, 4), array(3, 3, 4 // groups, 6))
    assert count == 2 * (2 * 4 * 3 * 6) * (3 * 3 * 4 // groups)


@pytest.mark.parametrize("unroll", [1, 5])
def test_scan_counts_every_turn(unroll):
    def run(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w, unroll=unroll)[0]

    assert flops.count(run, array(3, 4), array(5, 4, 4)) == 5 * 2 * 3 * 4 * 4


def test_gradient_is_twice_the_forward():
    def loss(x, w):
        return jnp.sum((x @ w) ** 2)

    forward = 2 * 3 * 4 * 6
    both = jax.value_and_grad(loss, argnums=(0, 1))
    assert flops.count(both, array(3, 4), array(4, 6)) == 3 * forward


def test_remat_counts_what_it_repeats():
    def loss(policy, x, w, v):
        layer = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ w) @ v), policy=policy)
        return jnp.sum(layer(x))

    shapes = array(3, 4), array(4, 6), array(6, 2)
    one, two = 2 * 3 * 4 * 6, 2 * 3 * 6 * 2

    def training(policy):
        return flops.count(jax.value_and_grad(lambda *args: loss(policy, *args)), *shapes)

    # The gradient in x alone needs one product for each product, and both are repeated.
    assert training(jax.checkpoint_policies.everything_saveable) == 2 * (one + two)
    assert training(jax.checkpoint_policies.nothing_saveable) == 3 * (one + two)


def test_shard_map_counts_all_devices():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "fsdp"))

    def shard(x_bxD, y_bxD):
        return jnp.sum(x_bxD @ jax.lax.all_gather(y_bxD, ("data", "fsdp"), tiled=True).T)[None]

    batch = PartitionSpec(("data", "fsdp"))
    mapped = jax.shard_map(
        shard, mesh=mesh, in_specs=(batch, batch), out_specs=batch, check_vma=False
    )
    assert flops.count(jax.jit(mapped), array(16, 5), array(16, 5)) == 2 * 16 * 16 * 5


def test_cond_counts_the_dearer_branch():
    def run(flag, x):
        return jax.lax.cond(flag, lambda: x @ x, lambda: x @ x @ x)

    assert flops.count(run, jax.ShapeDtypeStruct((), bool), array(3, 3)) == 2 * 2 * 27


def test_custom_derivatives_are_entered():
    @jax.custom_vjp
    def product(x, y):
        return x @ y

    product.defvjp(lambda x, y: (x @ y, (x, y)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert flops.count(product, array(2, 3), array(3, 4)) == 2 * 2 * 3 * 4


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("cpu", None),
    ],
)
def test_peak_takes_the_longest_name(kind, peak):
    assert hardware.peak(kind) == peak
