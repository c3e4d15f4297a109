"""Looking up tokens in a table that is split over devices: the same rows and gradients, and little moved."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clipjax.cost import hlo
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models.lookup import lookup

V, W, B, L = 24, 16, 16, 3
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(V, W)).astype(np.float32)
IDS = RNG.integers(0, V, (B, L)).astype(np.int32)
PULL = RNG.normal(size=(B, L, W)).astype(np.float32)


def compiled(sizes, batch=B, width=W, rows=V):
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    split = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    shapes = (
        jax.ShapeDtypeStruct((rows, width), np.float32, sharding=split),
        jax.ShapeDtypeStruct((batch, L), np.int32, sharding=batch_sharding(mesh)),
        jax.ShapeDtypeStruct((batch, L, width), np.float32, sharding=batch_sharding(mesh)),
    )
    total = lambda table, ids, pull: jnp.sum(lookup(table, ids) * pull)  # noqa: E731
    step = jax.jit(lambda *a: (lookup(*a[:2]), jax.grad(total)(*a)), out_shardings=(None, split))
    with jax.set_mesh(mesh):
        return step.lower(*shapes).compile(), shapes, mesh


MESHES = [
    dict(zip(("data", "fsdp", "tensor", "expert"), sizes, strict=True))
    for sizes in itertools.product((1, 2, 4, 8), repeat=4)
    if np.prod(sizes) == 8
]


@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: "x".join(map(str, s.values())))
def test_rows_and_gradients(sizes):
    step, shapes, _ = compiled(sizes)
    placed = [
        jax.device_put(x, s.sharding) for x, s in zip((TABLE, IDS, PULL), shapes, strict=True)
    ]
    found, gradient = step(*placed)
    np.testing.assert_array_equal(found, TABLE[IDS])
    wanted = np.zeros((V, W))
    np.add.at(wanted, IDS, PULL.astype(np.float64))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6, atol=1e-6)


def test_what_does_not_divide_is_still_right():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(
            jax.jit(lookup)(TABLE[:23, :15], IDS % 23), TABLE[:23, :15][IDS % 23]
        )
        np.testing.assert_array_equal(jax.jit(lookup)(TABLE, IDS[:5]), TABLE[IDS[:5]])
    np.testing.assert_array_equal(lookup(TABLE, IDS), TABLE[IDS])


def test_nothing_of_other_samples_is_moved():
    """Along `fsdp` a device receives its own rows' columns and the gradients of its columns; along `data` gradients."""
    sizes = {"data": 2, "fsdp": 4}
    step, _, mesh = compiled(sizes, batch=512, width=64)
    own = 4 * 512 // 8 * L * 64
    table = 4 * V * 64
    moved = {}
    for c in hlo.collectives(step.as_text()):
        axes = hlo.axes_of(c.groups, mesh)
        moved[axes] = moved.get(axes, 0) + c.bytes * c.times
    ids = 4 * 512 * L
    # Forward twice (the value, and within the gradient, if XLA does not share it), backward once.
    assert own <= moved.pop(("fsdp",)) <= 3 * own + 2 * ids
    assert sum(moved.values()) <= 2 * table
