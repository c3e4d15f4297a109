"""The note's "Testable small" list, 1 to 6: the optimisation through frozen towers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from experiments.cross_the_gap.inversion import (
    OTI,
    OVI,
    cosine_loss,
    optimise,
    patch_slots,
)
from tests.experiments.cross_the_gap import tiny

KINDS = (OTI, OVI)
NUMBERS = np.arange(4, dtype=np.uint32)


@functools.cache
def targets(seed=0):
    rng = np.random.default_rng(seed)
    return tiny.unit(rng.normal(size=(4, 16))).astype(np.float32)


@functools.cache
def inversion(kind, steps=(0, 3, 10), **settings):
    return kind(tiny.encoder(), steps, **settings)


@functools.cache
def program(kind, steps, **settings):
    made = inversion(kind, steps, **settings)

    def tokens(params, numbers, target):
        feature = functools.partial(made.feature, params)
        return optimise(feature, made.start(numbers), target, steps)

    return jax.jit(tokens)


def test_adamw_in_float64():
    """Of a linear encoder, whose gradient is written down by hand."""
    rng = np.random.default_rng(0)
    matrix_RWxD, start, target = (rng.normal(size=s) for s in ((6, 5), (3, 2, 3), (3, 5)))
    v, t = start.reshape(3, 6).copy(), tiny.unit(target)
    m, s, want = np.zeros_like(v), np.zeros_like(v), []
    for step in range(1, 8):
        f = v @ matrix_RWxD
        norm = np.linalg.norm(f, axis=1, keepdims=True)
        cosine = np.sum(f * t, axis=1, keepdims=True) / norm
        g = -(t - cosine * f / norm) / norm @ matrix_RWxD.T
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        move = m / (1 - 0.9**step) / (np.sqrt(s / (1 - 0.999**step)) + 1e-8)
        v = v - 0.02 * (move + 0.01 * v)
        want += [v] if step in (2, 7) else []
    feature = lambda x: x.reshape(3, 6) @ matrix_RWxD.astype(np.float32)  # noqa: E731
    start, target = start.astype(np.float32), target.astype(np.float32)
    got = jax.jit(lambda x, y: optimise(feature, x, y, (2, 7)))(start, target)
    np.testing.assert_allclose(np.reshape(got, (2, 3, 6)), want, rtol=2e-5, atol=2e-6)


def test_1_a_known_word_is_recovered():
    made = inversion(OTI, (150,))
    words_4x1xW = tiny.params()["text"]["token_embedding"][np.array([1125, 2368, 530, 3306])][
        :, None
    ]
    target = jax.jit(made.feature)(tiny.params(), words_4x1xW)
    found = made(tiny.params(), np.asarray(target))[:, 0]
    np.testing.assert_array_less(1 - np.sum(found * target, axis=1), 1e-2)


def test_the_template_with_a_word_is_the_sentence():
    encoder, made = tiny.encoder(), inversion(OTI)
    ids = encoder.tokenizer(["a photo of cat"])[0]
    place = np.flatnonzero(made.given[0] != ids)
    np.testing.assert_array_equal(place, made.given[1])
    word = tiny.params()["text"]["token_embedding"][ids[place]][None]
    got = jax.jit(made.feature)(tiny.params(), word)
    want = encoder.texts(tiny.params(), ["a photo of cat"])
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_2_alone_as_in_a_batch(kind):
    steps = (0, 3, 10)
    run = program(kind, steps)
    together = run(tiny.params(), NUMBERS, targets())
    alone = [run(tiny.params(), NUMBERS[i : i + 1], targets()[i : i + 1]) for i in range(2)]
    # Adam divides rounding by itself where a gradient is nearly zero.
    np.testing.assert_allclose(np.concatenate(alone, 1), together[:, :2], atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_devices_and_padding(kind):
    want = inversion(kind)(tiny.params(), targets())
    got = kind(tiny.encoder(8), (0, 3, 10))(tiny.params(), targets())
    assert got.shape == (4, 3, 16)
    np.testing.assert_allclose(got, want, atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_3_gradients_reach_the_pseudo_tokens_alone(kind):
    made = inversion(kind)
    loss = lambda params, v: cosine_loss(made.feature(params, v), targets())  # noqa: E731
    of_weights, of_tokens = jax.jit(jax.grad(loss, (0, 1)))(tiny.params(), made.start(NUMBERS))
    assert not any(np.any(g) for g in jax.tree.leaves(of_weights))
    assert np.all(np.abs(of_tokens).max((1, 2)) > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_4_the_length_of_the_target_does_not_matter(kind):
    run = program(kind, (0, 3, 10))
    want = run(tiny.params(), NUMBERS, targets())
    doubled = run(tiny.params(), NUMBERS, 4 * targets())  # a power of two: no rounding
    np.testing.assert_array_equal(doubled, want)
    np.testing.assert_allclose(run(tiny.params(), NUMBERS, 3 * targets()), want, atol=2e-4)


def test_5_pseudo_patches_on_the_grid():
    assert np.bincount(patch_slots(4, 49)).tolist() == [13, 12, 12, 12]
    assert patch_slots(16, 16).tolist() == list(range(16))
    assert not patch_slots(1, 16).any()
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    encoder, made = tiny.encoder(), inversion(OVI, patches=16)
    pixels = (image / 255.0 - 0.5) / 0.5

    def of_patches(params):
        module = encoder.module
        return module.apply({"params": params}, pixels, method=lambda m, x: m.image.embed(x))

    patches = jax.jit(of_patches)(tiny.params())
    got = jax.jit(made.feature)(tiny.params(), patches)
    np.testing.assert_allclose(got, encoder.images(tiny.params(), list(image)), atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_6_the_loss_begins_as_noise_and_falls(kind):
    steps = tuple(range(0, 61, 4))
    found_NxTxD = inversion(kind, steps)(tiny.params(), targets())
    loss_T = 1 - np.einsum("ntd,nd->t", found_NxTxD, targets()) / 4
    noise = jnp.asarray(np.random.default_rng(1).normal(0, 0.02, (4, *inversion(kind).shape)))
    other = jax.jit(inversion(kind).feature)(tiny.params(), noise.astype(jnp.float32))
    assert loss_T[0] == pytest.approx(1 - float(np.mean(np.sum(other * targets(), 1))), abs=0.1)
    assert np.all(np.diff(np.convolve(loss_T, np.ones(4) / 4, "valid")) < 0)


def test_starts_are_of_the_query_and_the_seed():
    first, second = inversion(OTI), inversion(OTI, seed=7)
    many = first.start(np.arange(2000, dtype=np.uint32))
    assert float(jnp.std(many)) == pytest.approx(0.02, rel=0.02)
    np.testing.assert_array_equal(many[5:7], first.start(np.uint32([5, 6])))
    assert np.all(first.start(NUMBERS) != second.start(NUMBERS))


def test_what_cannot_be_inverted():
    encoder = tiny.encoder()
    for steps in ((), (3, 2), (-1,), (2, 2)):
        with pytest.raises(UserError, match="must ascend from 0"):
            OTI(encoder, steps)
    with pytest.raises(UserError, match="no single token to each of 9 placeholders"):
        OTI(encoder, tokens=9)
    with pytest.raises(UserError, match=r"single token to each of 1 placeholders in '\{\} \{\}'"):
        OTI(encoder, template="{} {}")
    with pytest.raises(UserError, match=r"has no \{\} for the class name"):
        OTI(encoder, template="a photo")
    with pytest.raises(UserError, match="patches must be from 1 to 16, not 17"):
        OVI(encoder, patches=17)
