"""ALIP's loss against a float64 oracle, and what its note lists as testable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.errors import UserError
from clipjax.losses import softmax_contrastive
from clipjax.losses.tiles import LAYOUTS
from clipjax.mesh import batch_sharding, make_mesh
from experiments.alip.evals import area_under_curve
from experiments.alip.losses import MEANS, gated_contrastive, pair_weights, similarities
from tests.losses import oracle
from tests.losses.test_contrastive import SCALES, unit

B, D = 24, 12
START = {"mean_tc": 0.4, "mean_xt": 0.15, "mean_xc": -0.1}
GATES = dict(sample_gate=2.0, raw_gate=2.0, synthetic_gate=2.0)


def embeddings(seed=0):
    """(images, raw texts, captions): some of the raw texts agree with the caption, some with nothing."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(B, D))
    synthetic = image + 0.8 * rng.normal(size=(B, D))
    raw = np.where(rng.uniform(size=(B, 1)) < 0.6, synthetic, 0.0) + 0.7 * rng.normal(size=(B, D))
    return tuple(unit(x).astype(np.float32) for x in (image, raw, synthetic))


def outputs(image, raw, synthetic, scale=14.3, means=None):
    text = jnp.stack([raw, synthetic], axis=1)
    embedded = {"image_embedding": jnp.asarray(image), "text_embedding": text}
    means = {name: jnp.float32(x) for name, x in (means or START).items()}
    return embedded | {"logit_scale": jnp.float32(scale)} | means


def expected(image, raw, synthetic, scale, gates=(2.0, 2.0, 2.0), decay=0.99):
    """(value, gradients by image, texts [B,2,D] and scale, new means), one sample at a time in float64."""
    image, raw, synthetic = (np.asarray(x, np.float64) for x in (image, raw, synthetic))
    pairs = ((raw, synthetic), (image, raw), (image, synthetic))
    agree = np.array([[a[i] @ b[i] for i in range(B)] for a, b in pairs])
    mean = [
        decay * h + (1 - decay) * sum(s) / B for h, s in zip(START.values(), agree, strict=True)
    ]
    weights = np.ones((2, B))
    for i in range(B):
        assert abs(agree[0, i] - mean[0]) > 1e-6, "float32 would have to guess"
        of_sample = np.e ** (agree[0, i] - mean[0])
        if of_sample < 1:
            for part in (0, 1):
                of_pair = np.e ** (agree[1 + part, i] - mean[1 + part])
                weights[part, i] = of_sample ** gates[0] * of_pair ** gates[1 + part]
    assert 0 < (weights[0] != 1).sum() < B
    found = [
        oracle.softmax(oracle.case(image, text, scale=scale, image_weight=w, text_weight=w))
        for text, w in zip((raw, synthetic), weights, strict=True)
    ]
    (of_raw, grads_raw), (of_synthetic, grads_synthetic) = found
    text = np.stack([grads_raw[1], grads_synthetic[1]], axis=1)
    grads = grads_raw[0] + grads_synthetic[0], text, grads_raw[2] + grads_synthetic[2]
    return of_raw + of_synthetic, grads, dict(zip(MEANS, mean, strict=True))


def value_and_grads(**settings):
    def loss(image, text, scale, means):
        given = {"image_embedding": image, "text_embedding": text, "logit_scale": scale} | means
        value, metrics, updates = gated_contrastive(given, {}, **settings)
        return value, (metrics, updates)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize(
    ("sizes", "layout", "block_size"),
    [({"data": n}, LAYOUTS[i % 2], 5) for i, n in enumerate((1, 2, 4, 8))]
    + [({"data": 2, "fsdp": 2, "tensor": 2}, "gather", None), ({"fsdp": 4}, "ring", None)],
    ids=str,
)
def test_value_gradients_and_means_are_the_oracles(sizes, layout, block_size):
    devices = jax.devices()[: np.prod(list(sizes.values()))]
    mesh = make_mesh(sizes, devices=devices)
    step = value_and_grads(mesh=mesh, layout=layout, block_size=block_size)
    image, raw, synthetic = embeddings()
    put = functools.partial(jax.device_put, device=batch_sharding(mesh))
    means = {name: jnp.float32(x) for name, x in START.items()}
    for scale, tolerance in SCALES:
        want, want_grads, want_means = expected(image, raw, synthetic, scale)
        (value, (_, updates)), grads = step(
            put(image), put(np.stack([raw, synthetic], 1)), jnp.float32(scale), means
        )
        assert oracle.distance(value, want) < tolerance
        for got, wanted in zip(grads, want_grads, strict=True):
            assert oracle.distance(got, wanted) < tolerance
        assert updates.keys() == want_means.keys()
        for name, mean in want_means.items():
            assert updates[name] == pytest.approx(mean, rel=1e-6)
            assert updates[name].shape == ()
            assert updates[name].dtype == jnp.float32


@pytest.mark.parametrize("gates", [(0.0, 2.0, 0.0), (2.0, 0.0, 0.0), (1.0, 3.0, 2.0)])
def test_each_gate_alone(gates):
    # Without Ws (the paper's ablation) the other gates still need the condition.
    image, raw, synthetic = embeddings()
    want, want_grads, _ = expected(image, raw, synthetic, 14.3, gates)
    step = value_and_grads(**dict(zip(GATES, gates, strict=True)))
    means = {name: jnp.float32(x) for name, x in START.items()}
    (value, _), grads = step(image, np.stack([raw, synthetic], 1), jnp.float32(14.3), means)
    assert oracle.distance(value, want) < 2e-6
    for got, wanted in zip(grads, want_grads, strict=True):
        assert oracle.distance(got, wanted) < 2e-6


def test_1_without_gates_it_is_the_sum_of_two_clip_losses():
    image, raw, synthetic = embeddings()
    value, _, _ = gated_contrastive(
        outputs(image, raw, synthetic), {}, sample_gate=0.0, raw_gate=0.0, synthetic_gate=0.0
    )
    parts = [softmax_contrastive(image, text, 14.3)[0] for text in (raw, synthetic)]
    assert value == parts[0] + parts[1]


def test_2_texts_that_are_their_captions_count_one():
    rng = np.random.default_rng(0)
    text = rng.choice([-0.5, 0.5], size=(B, 4)).astype(np.float32)  # t.t is 1 to the last digit
    image = unit(rng.normal(size=(B, 4))).astype(np.float32)
    _, metrics, means = gated_contrastive(
        outputs(image, text, text, means=dict.fromkeys(MEANS, 1.0)), {}
    )
    assert means["mean_tc"] == 1.0
    found = similarities(image, text, text)
    for weight_B in pair_weights(found, means, **GATES):
        np.testing.assert_array_equal(weight_B, 1.0)
    assert metrics["raw/weight"] == metrics["synthetic/weight"] == 1.0


def test_3_a_case_by_hand():
    found = dict(zip(MEANS, jnp.array([[0.2], [0.4], [0.5]]), strict=True))
    means = {"mean_tc": 0.5, "mean_xt": 0.3, "mean_xc": 0.7}
    weights = functools.partial(pair_weights, found, means)
    (of_sample,), _ = weights(sample_gate=2.0, raw_gate=0.0, synthetic_gate=0.0)
    (of_pair,), _ = weights(sample_gate=0.0, raw_gate=2.0, synthetic_gate=0.0)
    (product,), (other,) = weights(**GATES)
    assert of_sample == pytest.approx(0.5488, abs=5e-5)
    assert of_pair == pytest.approx(1.2214, abs=5e-5)
    assert product == pytest.approx(0.6703, abs=5e-5)
    assert other == pytest.approx(np.exp(-0.6 - 0.4), abs=5e-5)


def test_4_a_sample_above_the_mean_counts_one_whatever_its_image_says():
    found = {"mean_tc": jnp.full(9, 0.51), "mean_xt": jnp.linspace(-1, 1, 9)}
    means = {"mean_tc": 0.5, "mean_xt": 0.3, "mean_xc": 0.3}
    for weight_B in pair_weights(found | {"mean_xc": -found["mean_xt"]}, means, **GATES):
        np.testing.assert_array_equal(weight_B, 1.0)


def test_5_no_gradient_goes_through_the_weights():
    image, raw, synthetic = embeddings()
    start = {name: jnp.float32(x) for name, x in START.items()}
    _, _, means = gated_contrastive(outputs(image, raw, synthetic), {})
    constants = pair_weights(similarities(image, raw, synthetic), means, **GATES)

    def constant(image, text, scale):
        sides = [
            softmax_contrastive(image, text[:, i], scale, image_weight=w, text_weight=w)[0]
            for i, w in enumerate(constants)
        ]
        return sides[0] + sides[1]

    given = (image, np.stack([raw, synthetic], 1), jnp.float32(14.3))
    want = jax.jit(jax.grad(constant, argnums=(0, 1, 2)))(*given)
    _, grads = value_and_grads()(*given, start)
    for got, wanted in zip(grads, want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)
    by_means = jax.grad(lambda m: gated_contrastive(outputs(image, raw, synthetic) | m, {})[0])
    assert all(g == 0 for g in by_means(start).values())


def test_6_the_means_move_first_and_are_used_then():
    # All similarities 0: the new mean is 0.99, and the weights exp(-2 * 0.99) twice.
    image, raw, synthetic = (np.eye(3, dtype=np.float32)[[i] * 4] for i in range(3))
    _, metrics, updates = gated_contrastive(
        outputs(image, raw, synthetic, means=dict.fromkeys(MEANS, 1.0)), {}
    )
    assert all(x == pytest.approx(0.99, abs=1e-7) for x in updates.values())
    for part in ("raw", "synthetic"):
        assert metrics[f"{part}/weight"] == pytest.approx(np.exp(-4 * 0.99), rel=1e-6)


def test_8_weights_find_texts_that_were_exchanged():
    # 48 images with 12 topics; a table of vectors for images, words and captions; 30 % of the words are another's.
    rng = np.random.default_rng(0)
    topic = np.repeat(np.arange(12), 4)
    exchanged = rng.uniform(size=48) < 0.3
    word = np.where(exchanged, (topic + 1 + rng.integers(11, size=48)) % 12, topic)
    tables = {k: jnp.asarray(rng.normal(size=(12, 16)), jnp.float32) for k in ("words", "captions")}
    tables["images"] = jnp.asarray(rng.normal(size=(48, 16)), jnp.float32)
    optimizer = optax.adam(0.05)

    def embedded(tables):
        rows = tables["images"], tables["words"][word], tables["captions"][topic]
        return [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in rows]

    def step(state, _):
        tables, moments, means = state

        def loss(tables):
            value, _, updates = gated_contrastive(
                outputs(*embedded(tables), scale=10.0) | means, {}, decay=0.9
            )
            return value, updates

        grads, means = jax.grad(loss, has_aux=True)(tables)
        change, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(tables, change), moments, means), None

    start = tables, optimizer.init(tables), {name: jnp.float32(1.0) for name in MEANS}
    (tables, _, means), _ = jax.jit(lambda s: jax.lax.scan(step, s, length=200))(start)
    weight, _ = pair_weights(similarities(*embedded(tables)), means, **GATES)
    weight = np.asarray(weight)
    assert weight[exchanged].mean() < 0.6 * weight[~exchanged].mean()
    assert area_under_curve(weight[exchanged], weight[~exchanged]) > 0.9


def test_one_text_an_image_is_refused():
    image, raw, _ = embeddings()
    given = outputs(image, raw, raw)
    for text in (raw, np.stack([raw] * 3, 1)):
        with pytest.raises(UserError, match=r"two texts an image.*Fields"):
            gated_contrastive(given | {"text_embedding": jnp.asarray(text)}, {})
