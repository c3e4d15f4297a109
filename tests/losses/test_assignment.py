"""Sinkhorn-Knopp against the iteration as it is written down: products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.losses.assignment import sinkhorn
from clipjax.mesh import batch_sharding, make_mesh
from tests.losses.oracle import distance


def plan(similarity, epsilon, iterations, row_mass, column_mass):
    q = np.exp(np.asarray(similarity, np.float64) / epsilon)
    q = q * (np.asarray(row_mass) > 0)[:, None]
    for _ in range(iterations):
        q = q * (column_mass / np.where(q.sum(0) > 0, q.sum(0), 1.0))
        q = q * (row_mass / np.where(q.sum(1) > 0, q.sum(1), 1.0))[:, None]
    return q


def cosines(rows, columns, seed=0, width=6):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(n, width)) for n in (rows, columns))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return (a @ b.T).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns", "iterations"), [(8, 8, 3), (16, 5, 1), (8, 20, 10)])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_as_written_down(rows, columns, iterations, devices):
    similarity = cosines(rows, columns)
    want = plan(similarity, 0.05, iterations, np.ones(rows), rows / columns)
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:devices]))
    got = jax.jit(lambda x: sinkhorn(x, iterations=iterations))(
        jax.device_put(similarity, sharding)
    )
    assert distance(got, want) < 1e-5
    np.testing.assert_allclose(np.sum(got, axis=1), 1.0, rtol=1e-5)


def test_rows_sum_to_one_and_with_enough_iterations_columns_too():
    got = np.asarray(sinkhorn(cosines(12, 12), epsilon=0.2, iterations=200))
    np.testing.assert_allclose(got.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(got.sum(0), 1.0, rtol=1e-4)


def test_masses_and_rows_without_any():
    row_mass, column_mass = np.array([2.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.5, 0.5])
    similarity = cosines(4, 5)
    got = sinkhorn(similarity, iterations=20, row_mass=row_mass, column_mass=column_mass)
    assert np.isfinite(got).all()
    assert distance(got, plan(similarity, 0.05, 20, row_mass, column_mass)) < 1e-5
    changed = similarity.copy()
    changed[1] = 9.0
    again = sinkhorn(changed, iterations=20, row_mass=row_mass, column_mass=column_mass)
    np.testing.assert_array_equal(got, again)


def test_several_at_once_and_any_magnitude():
    both = np.stack([cosines(6, 6, 0), cosines(6, 6, 1) * 50])
    got = sinkhorn(both)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1], sinkhorn(both[1]), rtol=1e-6)


def test_no_gradient():
    gradient = jax.grad(lambda x: jnp.sum(sinkhorn(x) ** 2))(jnp.asarray(cosines(4, 4)))
    assert not np.any(gradient)


@pytest.mark.parametrize("settings", [dict(epsilon=0.0), dict(iterations=0)])
def test_refused(settings):
    with pytest.raises(UserError, match="positive epsilon and at least 1 iteration"):
        sinkhorn(cosines(3, 3), **settings)
