"""Similarity distillation against whole matrices in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.cost import hlo
from clipjax.errors import UserError
from clipjax.losses import KINDS, similarity_distill
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.registry import lookup
from tests.losses import oracle
from tests.losses.test_contrastive import B, embeddings

K = 7  # the teacher's width
SCALES = [(1.0, 3.0, 2e-6), (14.3, 20.0, 2e-6), (100.0, 60.0, 2e-5)]  # student, teacher, tolerance
GIVEN = dict(own_share=0.5, temperature=1.0)


def pairs():
    """Student and teacher embeddings."""
    return (*embeddings(), *embeddings(seed=3, width=K))


def log_softmax(logits):
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))


def wanted(image, text, scale, taught_image, taught_text, taught_scale, own_share, temperature):
    """(value, gradients by image, text and scale, cross-entropy): sums of q (log q - log p), where 0 log 0 = 0."""
    image, text, taught_image, taught_text = (
        np.asarray(x, np.float64) for x in (image, text, taught_image, taught_text)
    )
    similarity, value, cross, d = image @ text.T, 0.0, 0.0, 0.0
    taught, n = taught_scale * taught_image @ taught_text.T, len(image)
    for turn in (lambda x: x, np.transpose):
        log_p = log_softmax(scale / temperature * turn(similarity))
        q = (1 - own_share) * np.exp(log_softmax(turn(taught) / temperature)) + own_share * np.eye(
            n
        )
        for i, j in np.argwhere(q > 0):
            value += temperature**2 * q[i, j] * (np.log(q[i, j]) - log_p[i, j]) / n / 2
            cross -= temperature**2 * q[i, j] * log_p[i, j] / n / 2
        d = d + turn(np.exp(log_p) - q) * temperature / n / 2
    return value, (scale * d @ text, scale * d.T @ image, (d * similarity).sum()), cross


def check(mesh=None, student_scale=14.3, teacher_scale=20.0, tolerance=2e-6, given=GIVEN, **how):
    arrays = pairs()
    value, grads, cross = wanted(*arrays[:2], student_scale, *arrays[2:], teacher_scale, **given)
    if mesh is not None:
        arrays = jax.device_put(arrays, batch_sharding(mesh))

    def loss(image, text, scale, *taught):
        return similarity_distill(
            image, text, scale, *taught, teacher_scale, mesh=mesh, **given, **how
        )[0]

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    got, got_grads = step(*arrays[:2], jnp.float32(student_scale), *arrays[2:])
    # A difference of cross-entropy and entropy, so it is exact to the rounding of these.
    assert abs(got - value) < tolerance * cross
    for have, want in zip(got_grads, grads, strict=True):
        assert oracle.distance(have, want) < tolerance


@pytest.mark.parametrize("own_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("student_scale", "teacher_scale", "tolerance"), SCALES)
def test_one_device(own_share, student_scale, teacher_scale, tolerance):
    given = GIVEN | dict(own_share=own_share)
    check(None, student_scale, teacher_scale, tolerance, given, block_size=7)


@pytest.mark.parametrize("layout", ["gather", "ring"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_devices(layout, devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    check(mesh, layout=layout, block_size=5)


def test_a_mesh_that_shares_rows():
    check(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), layout="ring", block_size=2)


def test_temperature():
    check(given=GIVEN | dict(temperature=4.0))


def test_own_share_of_each_row():
    share = np.linspace(0, 1, B, dtype=np.float32)
    arrays = pairs()
    got, _ = similarity_distill(*arrays[:2], 9.0, *arrays[2:], 9.0, own_share=share)
    # The share of a row and of its column.
    each = np.asarray(share, np.float64)[:, None]
    value, _, cross = wanted(*arrays[:2], 9.0, *arrays[2:], 9.0, each, 1.0)
    assert abs(got - value) < 2e-6 * cross


def test_zero_where_the_student_is_the_teacher():
    image, text = (10.0 * x for x in embeddings())  # raw products of order 100, as CLIP's

    def loss(image, text, **given):
        return similarity_distill(image, text, 1.0, *pairs()[:2], 100.0, **given)[0]

    value, grads = jax.value_and_grad(loss, (0, 1))(image, text)
    _, plain = jax.value_and_grad(functools.partial(loss, own_share=1.0), (0, 1))(image, text)
    assert abs(value) < 1e-5
    for zero, full in zip(grads, plain, strict=True):
        assert np.linalg.norm(zero) < 2e-5 * np.linalg.norm(full)


def test_nothing_flows_into_the_teacher():
    image, text, *taught = pairs()

    def loss(taught, scale):
        return similarity_distill(image, text, 5.0, *taught, scale, own_share=0.5)[0]

    grads = jax.grad(loss, (0, 1))(tuple(taught), 20.0)
    assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_entry_of_a_config():
    image, text, *taught = pairs()
    names = ("image_embedding", "text_embedding")
    outputs = {
        **dict(zip(names, (image, text), strict=True)),
        **{f"teacher_{n}": x for n, x in zip(names, taught, strict=True)},
        "logit_scale": jnp.float32(9.0),
        "teacher_logit_scale": jnp.float32(20.0),
    }
    loss = lookup("similarity_distill", KINDS, "loss")
    value, metrics = loss(outputs, {}, own_share=0.25)
    assert value == similarity_distill(image, text, 9.0, *taught, 20.0, own_share=0.25)[0]
    assert 0 < metrics["target_entropy"] < np.log(B)
    # Texts alone, with scales of the config.
    value, _ = loss(outputs, {}, student=names[1:] * 2, student_scale=2.0, teacher_scale=3.0)
    assert value == similarity_distill(text, text, 2.0, *taught, 3.0)[0]


@pytest.mark.parametrize(("layout", "words"), [("gather", (2, 1)), ("ring", (3, 3))])
def test_cost(layout, words):
    batch, d, k, n, mesh = 32_768, 64, 128, 8, make_mesh()
    rows = lambda w: jax.ShapeDtypeStruct((batch, w), jnp.float32, sharding=batch_sharding(mesh))  # noqa: E731
    loss = functools.partial(similarity_distill, own_share=0.5, mesh=mesh, layout=layout)
    step = jax.value_and_grad(lambda i, t, u, v: loss(i, t, 5.0, u, v, 7.0)[0], (0, 1))
    compiled = jax.jit(step).lower(rows(d), rows(d), rows(k), rows(k)).compile()
    used, text = compiled.memory_analysis(), compiled.as_text()
    assert used.temp_size_in_bytes < batch * batch // n  # a fourth of a device's rows of logits
    assert hlo.matmul_flops(text) * n / batch**2 == 8 * d + 6 * k
    moved = sum(c.bytes * c.times for c in hlo.collectives(text)) / 4 / batch
    assert moved < words[0] * d + words[1] * k


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(own_share=1.5), "own_share must be from 0 to 1, not 1.5"),
        (dict(temperature=0.0), "temperature must be above 0, not 0.0"),
        (dict(layout="rings"), "did you mean 'ring'"),
    ],
)
def test_refusals(given, words):
    image, text, *taught = pairs()
    with pytest.raises(UserError, match=words):
        similarity_distill(image, text, 1.0, *taught, 1.0, **given)
