"""Cross entropy against classes: sample by sample in float64, with the textbook's gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.losses import KINDS, class_cross_entropy
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.registry import lookup
from tests.losses import oracle
from tests.losses.test_contrastive import embeddings

B, C = 16, 11


def case():
    """Images, classes, and labels of which two are none."""
    image, classes = embeddings(images=B, texts=C)
    labels = np.random.default_rng(1).integers(0, C, B).astype(np.int32)
    labels[[3, 9]] = -1
    return image, classes, labels


def wanted(image, classes, labels, scale, smoothing):
    """(value, gradients by image and classes, gradient by scale with the sum of its terms' sizes, accuracy)."""
    image, classes = np.asarray(image, np.float64), np.asarray(classes, np.float64)
    value, right, by_image, by_class, by_scale, size = 0.0, 0, 0 * image, 0 * classes, 0.0, 0.0
    known = [i for i, label in enumerate(labels) if label >= 0]
    for i in known:
        cosines = [image[i] @ c for c in classes]
        p = np.exp(scale * np.array(cosines) - scale * max(cosines))
        p /= p.sum()
        right += int(np.argmax(cosines) == labels[i])
        for c in range(len(classes)):
            q = smoothing / len(classes) + (1 - smoothing) * (c == labels[i])
            value -= q * np.log(p[c]) / len(known)
            d = (p[c] - q) / len(known)
            by_image[i] += scale * d * classes[c]
            by_class[c] += scale * d * image[i]
            by_scale += d * cosines[c]
            size += abs(d * cosines[c])
    return value, (by_image, by_class), (by_scale, size), right / len(known)


def check(mesh=None, scale=14.3, smoothing=0.0, tolerance=2e-6):
    image, classes, labels = case()
    value, grads, (by_scale, size), accuracy = wanted(image, classes, labels, scale, smoothing)
    if mesh is not None:
        image, labels = jax.device_put((image, labels), batch_sharding(mesh))

    def loss(image, classes, scale):
        return class_cross_entropy(image, classes, labels, scale, label_smoothing=smoothing)

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (got, metrics), got_grads = step(image, classes, jnp.float32(scale))
    assert abs(got - value) < tolerance * value
    assert metrics["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert abs(got_grads[2] - by_scale) < tolerance * size
    for have, want in zip(got_grads[:2], grads, strict=True):
        assert oracle.distance(have, want) < tolerance


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 2e-6), (14.3, 2e-6), (100.0, 2e-5)])
def test_one_device(scale, tolerance, smoothing):
    check(None, scale, smoothing, tolerance)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_devices(devices):
    check(make_mesh(devices=jax.devices()[:devices]), smoothing=0.1)


def test_a_mesh_that_shares_rows():
    check(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))


def test_without_any_label_it_is_zero():
    image, classes, labels = case()
    none = np.full_like(labels, -1)
    loss = lambda image: class_cross_entropy(image, classes, none, 10.0)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(image)
    assert value == 0
    assert not np.any(gradient)


def test_a_label_that_is_no_class_is_no_number():
    image, classes, labels = case()
    labels[5] = C
    assert np.isnan(class_cross_entropy(image, classes, labels, 10.0)[0])


def test_an_entry_of_a_config():
    image, classes, labels = case()
    loss = lookup("class_cross_entropy", KINDS, "loss")
    outputs = {"image_embedding": image, "class_centres": classes, "logit_scale": jnp.float32(9.0)}
    got, metrics = loss(outputs, {"labels": labels[:, None]})
    value, *_, accuracy = wanted(image, classes, labels, 9.0, 0.0)
    assert got == pytest.approx(value, rel=2e-6)
    assert metrics["accuracy"] == pytest.approx(accuracy)
    assert loss(outputs, {"labels": labels[:, None]}, scale=9.0)[0] == got


def test_what_does_not_fit_is_refused():
    image, classes, labels = case()
    loss = lookup("class_cross_entropy", KINDS, "loss")
    outputs = {"image_embedding": image, "class_centres": classes, "logit_scale": 1.0}
    with pytest.raises(UserError, match=r"one label a sample, but the field 'labels' is \[16, 2\]"):
        loss(outputs, {"labels": np.stack([labels, labels], axis=1)})
    with pytest.raises(UserError, match="label_smoothing must be at least 0 and below 1, not 1"):
        class_cross_entropy(image, classes, labels, 1.0, label_smoothing=1.0)
