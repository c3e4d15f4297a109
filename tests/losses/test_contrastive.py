"""Both contrastive losses against a float64 oracle written as plain loops over pairs' matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.losses import sigmoid_contrastive, softmax_contrastive
from clipjax.losses.pairs import LAYOUTS
from clipjax.mesh import batch_sharding, make_mesh

B, D = 24, 12


def inputs(seed=0, duplicates=True):
    rng = np.random.default_rng(seed)
    image, text = (rng.normal(size=(B, D)).astype(np.float32) for _ in range(2))
    if duplicates:
        image[3], text[5], text[7] = image[2], text[4], text[4]
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))


def softmax_oracle(image, text, scale, bias=None):
    """Value and gradients from the textbook formulas, dS = (P_row + P_col - 2 I) / 2B; scalars' as terms to sum."""
    image, text, scale = (np.asarray(x, np.float64) for x in (image, text, scale))
    similarity = image @ text.T
    logits = scale * similarity
    rows = np.exp(logits - logits.max(1, keepdims=True))
    rows /= rows.sum(1, keepdims=True)
    columns = np.exp(logits - logits.max(0, keepdims=True))
    columns /= columns.sum(0, keepdims=True)
    value = -(np.log(np.diag(rows)).mean() + np.log(np.diag(columns)).mean()) / 2
    d = (rows + columns - 2 * np.eye(len(image))) / (2 * len(image))
    return value, (scale * d @ text, scale * d.T @ image, d * similarity)


def sigmoid_oracle(image, text, scale, bias):
    image, text, scale, bias = (np.asarray(x, np.float64) for x in (image, text, scale, bias))
    similarity = image @ text.T
    sign = 2 * np.eye(len(image)) - 1
    margin = sign * (scale * similarity + bias)
    value = np.logaddexp(0, -margin).sum() / len(image)
    d = -sign / (1 + np.exp(margin)) / len(image)
    return value, (scale * d @ text, scale * d.T @ image, d * similarity, d)


LOSSES = {
    "softmax": (
        lambda i, t, s, b, **k: softmax_contrastive(i, t, s, **k),
        softmax_oracle,
        (0, 1, 2),
    ),
    "sigmoid": (sigmoid_contrastive, sigmoid_oracle, (0, 1, 2, 3)),
}


def relative(got, want):
    return np.linalg.norm(np.asarray(got, np.float64) - want) / max(np.linalg.norm(want), 1e-30)


def check(name, scale, bias, tolerance, mesh=None, **settings):
    loss, oracle, wrt = LOSSES[name]
    image, text = inputs()
    args = [jnp.asarray(image), jnp.asarray(text), jnp.float32(scale), jnp.float32(bias)]
    if mesh is not None:
        args[:2] = jax.device_put(args[:2], batch_sharding(mesh))
    function = jax.jit(
        jax.value_and_grad(lambda *a: loss(*a, mesh=mesh, **settings)[0], argnums=wrt)
    )
    value, grads = function(*args)
    want_value, want_grads = oracle(image, text, scale, bias)
    assert relative(value, want_value) < tolerance
    for got, want in zip(grads[:2], want_grads[:2], strict=True):
        assert relative(got, want) < tolerance
    # The gradient of a scalar is a sum over all pairs that may cancel: its error is measured against its terms.
    for got, terms in zip(grads[2:], want_grads[2:], strict=True):
        assert abs(float(got) - terms.sum()) < tolerance * np.abs(terms).sum()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 2e-6), (14.3, 2e-6), (100.0, 2e-5)])
@pytest.mark.parametrize("block_size", [None, 1, 7, 24, 100])
def test_one_device(name, scale, tolerance, block_size):
    check(name, scale, -3.0, tolerance, block_size=block_size)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("block_size", [None, 5])
def test_devices(name, layout, devices, block_size):
    mesh = make_mesh(devices=jax.devices()[:devices])
    check(name, 14.3, -10.0, 2e-6, mesh=mesh, layout=layout, block_size=block_size)
    check(name, 100.0, -10.0, 2e-5, mesh=mesh, layout=layout, block_size=block_size)


@pytest.mark.parametrize(("name", "layout"), list(itertools.product(LOSSES, LAYOUTS)))
@pytest.mark.parametrize(
    "sizes", [{"data": 2, "fsdp": 4}, {"data": 2, "tensor": 4}, {"fsdp": 4, "expert": 2}]
)
def test_meshes(name, layout, sizes):
    check(name, 14.3, -3.0, 2e-6, mesh=make_mesh(sizes), layout=layout, block_size=4)


def test_metrics_do_not_depend_on_the_mesh():
    image, text = inputs(duplicates=False)
    _, alone = softmax_contrastive(image, text, 10.0)
    _, split = softmax_contrastive(image, text, 10.0, mesh=make_mesh(), layout="ring", block_size=2)
    similarity = image @ text.T
    assert alone["image_to_text_accuracy"] == pytest.approx(
        np.mean(similarity.argmax(1) == np.arange(B))
    )
    assert alone["text_to_image_accuracy"] == pytest.approx(
        np.mean(similarity.argmax(0) == np.arange(B))
    )
    assert jax.tree.map(float, alone) == pytest.approx(jax.tree.map(float, split))


def test_equal_embeddings_are_no_hits():
    same = np.ones((B, D), np.float32) / np.sqrt(D)
    loss, metrics = softmax_contrastive(same, same, 10.0)
    assert float(loss) == pytest.approx(np.log(B), rel=1e-6)
    assert float(metrics["image_to_text_accuracy"]) == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(text_BxD=np.zeros((B - 1, D))),
            r"as many images as texts.*\[24, 12\] and \[23, 12\]",
        ),
        (dict(layout="rings"), "did you mean 'ring'"),
        (dict(block_size=0), "at least 1"),
        (dict(mesh="three"), "24 does not divide over 5 devices"),
    ],
)
def test_refusals(change, words):
    image, text = inputs()
    kwargs = dict(image_BxD=image, text_BxD=text, logit_scale=1.0) | change
    if "mesh" in change:
        kwargs["mesh"] = make_mesh(devices=jax.devices()[:5])
    with pytest.raises(UserError, match=words):
        softmax_contrastive(**kwargs)
