"""The note's "Testable small" list, 7 and 8: a tiny CLIP of 16 noisy patterns, trained at two fixed scales.

It shows the gap, and that zero-shot classification does not gain. It does not show that retrieval does (README,
Direction), so no test says so.
"""

import functools

import jax
import numpy as np
import optax
import pytest

from clipjax.losses import softmax_contrastive
from experiments.cross_the_gap.inversion import OTI
from tests.experiments.cross_the_gap import tiny

WORDS = ["cat", "dog", "kite", "boat", "tree", "lamp", "fish", "star"]
WORDS += ["moon", "rock", "bird", "frog", "door", "ship", "coin", "leaf"]
PATTERNS = np.random.default_rng(99).normal(size=(16, 16, 16, 3)).astype(np.float32)
TEMPLATE, PER_CLASS, STEPS = "a photo of {}", 8, 500

pytestmark = pytest.mark.slow


def texts():
    return [TEMPLATE.format(word) for word in WORDS]


@functools.cache
def trained(scale):
    module, ids, adam = tiny.encoder().module, tiny.encoder().tokenizer(texts()), optax.adam(3e-3)

    def loss(params, image):
        outputs = module.apply({"params": params}, {"image": image, "text": ids})
        return softmax_contrastive(outputs["image_embedding"], outputs["text_embedding"], scale)[0]

    def step(carry, key):
        params, state = carry
        gradients = jax.grad(loss)(params, PATTERNS + jax.random.normal(key, PATTERNS.shape))
        updates, state = adam.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), STEPS)
    start = tiny.params(), adam.init(tiny.params())
    return jax.device_get(jax.jit(lambda c: jax.lax.scan(step, c, keys)[0][0])(start))


@functools.cache
def features(scale):
    """Of held-out images [N, D] and their labels [N], of the texts [16, D], and OTI features of the images [N, D]."""
    encoder, params, labels = tiny.encoder(), trained(scale), np.tile(np.arange(16), PER_CLASS)
    noise = np.random.default_rng(5).normal(size=(len(labels), 16, 16, 3))
    image = encoder.run("image", params, (PATTERNS[labels] + noise).astype(np.float32))
    inverted = OTI(encoder, (150,), template=TEMPLATE)(params, image)[:, 0]
    return image, labels, encoder.texts(params, texts()), inverted


def accuracy(query, classes, labels):
    return np.mean(np.argmax(query @ classes.T, 1) == labels)


def test_7_the_gap_is_wider_at_the_larger_scale():
    def gap(scale):
        image, _, text, _ = features(scale)
        return np.linalg.norm(image.mean(0) - text.mean(0))

    assert gap(100.0) > 3 * gap(1.0)


def test_7_a_wide_gap_keeps_oti_features_away_from_the_image():
    cosine = {s: np.mean(np.sum(features(s)[3] * features(s)[0], 1)) for s in (1.0, 100.0)}
    assert cosine[100.0] < 0.7 < 0.95 < cosine[1.0]


def test_8_zero_shot_with_oti_features_is_not_better():
    image, labels, text, inverted = features(100.0)
    native, inter = accuracy(image, text, labels), accuracy(inverted, text, labels)
    assert 0.5 < inter <= native
