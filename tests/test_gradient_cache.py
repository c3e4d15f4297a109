"""The gradient cache: what it returns is the whole batch's, what it holds is a micro-batch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax import rules
from clipjax.gradient_cache import value_and_grad
from clipjax.mesh import batch_sharding, make_mesh, parameter_shardings
from clipjax.models import example_batch, image_section, make_model, model_section, text_section
from clipjax.step import make_losses

BATCH, LENGTH, WORDS = 64, 6, 32


@functools.cache
def model_and_shapes():
    """A dual encoder that drops half of its patches, and its parameters' shapes with their logical axes."""
    tower = dict(width=16, depth=1, heads=2)
    config = model_section(
        image_section(size=16, patch=4, patch_dropout=0.5, **tower),
        text_section(length=LENGTH, vocab_size=WORDS, end_token=3, **tower),
        embed_dim=8,
        init_bias=-2.0,
        dtype="float32",
    )
    model = make_model(config)
    return model, jax.eval_shape(model.init, jax.random.key(0), example_batch(config))["params"]


@functools.cache
def params():
    model, _ = model_and_shapes()
    rows = {k: x[:1] for k, x in batch().items()}
    return nn.unbox(jax.jit(model.init)(jax.random.key(0), rows))["params"]


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    text = rng.integers(4, WORDS, (BATCH, LENGTH), np.int32)
    text[:, -1] = 3
    image = rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8)
    return {"image": image, "text": text, "sample_seed": np.arange(BATCH, dtype=np.uint32) * 977}


def compile_model(kind, chunks, sizes, layout, count=BATCH):
    """The compiled `(params, batch) -> ((value, metrics), gradients)` of the dual encoder on a mesh, and the mesh."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    model, boxed = model_and_shapes()
    losses = make_losses({"pairs": {"kind": kind, "layout": layout, "block_size": 16}}, mesh)

    def function(params, batch):
        encode = lambda p, rows: model.apply({"params": p}, rows, train=True)  # noqa: E731
        total = lambda outputs: losses(outputs, batch, jnp.float32(0))  # noqa: E731
        return value_and_grad(encode, total, params, batch, chunks)

    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    shapes = jax.tree.map(place, nn.unbox(boxed), parameter_shardings(boxed, mesh))
    rows = {
        k: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=batch_sharding(mesh))
        for k, x in batch().items()
    }
    where = jax.tree.map(lambda x: x.sharding, shapes)
    with jax.set_mesh(mesh), jax.default_matmul_precision("float32"):
        jitted = jax.jit(function, out_shardings=(None, where))
        return jitted.lower(shapes, rows).compile(), mesh


def run_model(*how):
    """(value, metrics, flat gradients), as NumPy."""
    compiled, mesh = compile_model(*how)
    placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in batch().items()}
    _, boxed = model_and_shapes()
    (value, metrics), grads = compiled(
        jax.device_put(params(), parameter_shardings(boxed, mesh)), placed
    )
    return float(value), jax.device_get(metrics), jax.device_get(rules.paths(grads))


@functools.cache
def whole_batch(kind):
    return run_model(kind, 1, {"data": 1}, "gather")


def apart(a, b):
    """Relative distance of two arrays or dicts of arrays, in the Euclidean norm."""
    flat = lambda x: np.concatenate([np.ravel(v) for v in jax.tree.leaves(x)]).astype(np.float64)  # noqa: E731
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


@pytest.mark.parametrize(
    ("kind", "chunks", "sizes", "layout"),
    [
        ("softmax", 2, {"data": 1}, "gather"),
        ("softmax", 8, {"data": 1}, "gather"),
        ("sigmoid", 2, {"data": 1}, "gather"),
        ("sigmoid", 8, {"data": 2}, "ring"),
        ("softmax", 2, {"data": 2}, "ring"),
        ("softmax", 8, {"data": 8}, "gather"),
        ("softmax", 1, {"data": 2, "fsdp": 4}, "ring"),
        ("softmax", 2, {"data": 2, "fsdp": 2, "tensor": 2}, "gather"),
        ("sigmoid", 8, {"data": 2, "fsdp": 4}, "ring"),
    ],
)
def test_gradients_are_those_of_the_whole_batch(kind, chunks, sizes, layout):
    value, metrics, grads = run_model(kind, chunks, sizes, layout)
    whole_value, whole_metrics, whole_grads = whole_batch(kind)
    assert value == pytest.approx(whole_value, rel=2e-6)
    assert metrics.keys() == whole_metrics.keys()
    for name, metric in whole_metrics.items():
        assert metrics[name] == pytest.approx(metric, rel=1e-5), name
    assert apart(grads, whole_grads) < 2e-6
    scalars = ["logit_scale"] + ["logit_bias"] * (kind == "sigmoid")
    for name in scalars:
        assert abs(whole_grads[name]) > 1e-3
        assert apart(grads[name], whole_grads[name]) < 2e-6, name
