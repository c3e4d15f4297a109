"""Batch norm over the global batch, against float64 formulas, on meshes, and where it is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models.batch_norm import UPDATES, BatchNorm
from clipjax.platform import IN_MICRO_BATCH

X = (3.0 + 2.0 * np.random.default_rng(0).normal(size=(16, 5))).astype(np.float32)
PARAMS = {
    "scale": np.linspace(0.5, 1.5, 5, dtype=np.float32),
    "bias": np.linspace(-1, 1, 5, dtype=np.float32),
    "mean": np.full(5, 0.5, np.float32),
    "var": np.full(5, 2.0, np.float32),
}


def normed(x, mean, var, eps=1e-5):
    x = x.astype(np.float64)
    return (x - mean) / np.sqrt(var + eps) * PARAMS["scale"] + PARAMS["bias"]


def apply(x, train, params=PARAMS, mutable=(UPDATES,), **settings):
    module = BatchNorm(**settings)
    run = lambda p, x: module.apply({"params": p}, x, train=train, mutable=mutable)  # noqa: E731
    return jax.jit(run)(params, x)


@pytest.mark.parametrize("shape", [(16, 5), (4, 4, 5)])
def test_training_takes_the_batch(shape):
    y, updates = apply(X.reshape(shape), True, momentum=0.75)
    np.testing.assert_allclose(
        y.reshape(16, 5), normed(X, X.mean(0), X.var(0)), rtol=1e-4, atol=1e-5
    )
    found = updates[UPDATES]
    assert found.keys() == {"mean", "var"}
    np.testing.assert_allclose(found["mean"], 0.75 * 0.5 + 0.25 * X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], 0.75 * 2.0 + 0.25 * X.var(0, ddof=1), rtol=1e-5)


def test_evaluation_takes_the_running_statistics():
    y, updates = apply(X, False)
    np.testing.assert_allclose(y, normed(X, 0.5, 2.0), rtol=1e-5, atol=1e-5)
    assert not updates
    plain = BatchNorm().apply({"params": PARAMS}, X, train=True)  # nobody asks for updates
    np.testing.assert_allclose(plain, normed(X, X.mean(0), X.var(0)), rtol=1e-4, atol=1e-5)


def test_without_an_affine_map_and_in_half_precision():
    params = {k: PARAMS[k] for k in ("mean", "var")}
    y, _ = apply(jnp.asarray(X, jnp.bfloat16), True, params, affine=False)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32).mean(0), 0, atol=0.05)
    y, _ = apply(jnp.asarray(X, jnp.bfloat16), True, params, affine=False, dtype="float32")
    assert y.dtype == jnp.float32
    init = functools.partial(BatchNorm(affine=False).init, train=True)
    made = jax.eval_shape(init, jax.random.key(0), X)
    assert made.keys() == {"params"}
    assert made["params"].keys() == {"mean", "var"}


def test_gradients():
    """Through the batch's statistics, and none into the running ones."""

    def total(params, x):
        return jnp.sum(jnp.sin(BatchNorm().apply({"params": params}, x, train=True)))

    of_params, of_x = jax.jit(jax.grad(total, (0, 1)))(PARAMS, X)
    assert not of_params["mean"].any()
    assert not of_params["var"].any()
    direction = np.random.default_rng(1).normal(size=X.shape)

    def by_hand(x):
        x = np.asarray(x, np.float64)
        return np.sin(normed(x, x.mean(0), x.var(0))).sum()

    step = 1e-5
    wanted = (by_hand(X + step * direction) - by_hand(X - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(of_x * direction), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_the_same_on_every_mesh(sizes):
    wanted, updates = apply(X, True)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        y, more = apply(jax.device_put(X, batch_sharding(mesh)), True)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)  # noqa: E731
    jax.tree.map(close, more, updates)


def test_two_calls_move_the_statistics_twice():
    class Twice(nn.Module):
        def setup(self):
            self.norm = BatchNorm(momentum=0.5)

        def __call__(self, x):
            return self.norm(x, train=True), self.norm(2 * x, train=True)

    params = {"norm": PARAMS}
    (one, two), updates = Twice().apply({"params": params}, X, mutable=[UPDATES])
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)
    wanted = 0.5 * (0.5 * 0.5 + 0.5 * X.mean(0)) + 0.5 * 2 * X.mean(0)
    np.testing.assert_allclose(updates[UPDATES]["norm"]["mean"], wanted, rtol=1e-5)


def test_a_micro_batch_is_refused():
    token = IN_MICRO_BATCH.set(True)
    try:
        with pytest.raises(UserError, match=r"one micro-batch of config\.grad_cache.*whole_batch"):
            apply(X, True)
        apply(X, False)
    finally:
        IN_MICRO_BATCH.reset(token)
