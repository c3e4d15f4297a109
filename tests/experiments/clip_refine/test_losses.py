"""The note's "Testable small" list, as far as it is about losses: against float64 and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.losses import similarity_distill, softmax_contrastive
from clipjax.mesh import batch_sharding, make_mesh
from experiments.clip_refine.losses import RAW, direct_alignment, random_alignment, random_targets

B, D = 24, 12
SEEDS = np.arange(B, dtype=np.uint32) * 977
SCALINGS = {"code": 2 / (B * D), "paper": 1 / B}  # of the gradient, z - r


def features(seed=0):
    rng = np.random.default_rng(seed)
    return [(3.0 * rng.normal(size=(B, D)) + 1.0).astype(np.float32) for _ in RAW]


def run(loss, image, text, seeds=SEEDS, **given):
    """(value, gradients by image and text) of an entry of `losses`."""

    def value(*vectors):
        outputs = dict(zip(RAW, vectors, strict=True))
        return loss(outputs, {"sample_seed": seeds}, **given)[0]

    return jax.jit(jax.value_and_grad(value, (0, 1)))(image, text)


def check(got, value, gradients):
    assert float(got[0]) == pytest.approx(value, rel=2e-6)
    for have, want in zip(got[1], gradients, strict=True):
        assert np.linalg.norm(have - want) < 2e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_alignments_by_loops_in_float64(scaling, devices):
    vectors = features()
    wide = [x.astype(np.float64) for x in vectors]
    r = np.asarray(random_targets(SEEDS, jnp.float32(64), D), np.float64)
    slope = SCALINGS[scaling]
    want = {"random": 0.0, "direct": 0.0}
    for i in range(B):
        for d in range(D):
            want["random"] += slope / 2 * sum((z[i, d] - r[i, d]) ** 2 for z in wide)
            want["direct"] += slope / 2 * (wide[0][i, d] - wide[1][i, d]) ** 2
    mesh = make_mesh(devices=jax.devices()[:devices])
    *vectors, seeds = jax.device_put((*vectors, SEEDS), batch_sharding(mesh))
    got = run(random_alignment, *vectors, seeds, samples=jnp.float32(64), scaling=scaling)
    check(got, want["random"], [slope * (z - r) for z in wide])
    got = run(direct_alignment, *vectors, seeds, scaling=scaling)
    apart = slope * (wide[0] - wide[1])
    check(got, want["direct"], [apart, -apart])


def test_random_vectors_do_not_depend_on_devices():
    draw = jax.jit(lambda seeds: random_targets(seeds, 64.0, D))
    one = draw(SEEDS)
    many = draw(jax.device_put(SEEDS, batch_sharding(make_mesh({"data": 2, "fsdp": 4}))))
    np.testing.assert_array_equal(one, many)
    np.testing.assert_array_equal(one[5:7], draw(SEEDS[5:7]))  # nor on the batch around them


def test_paper_is_half_the_width_times_code():
    code, paper = (
        run(random_alignment, *features(), samples=0.0, scaling=s)[0] for s in ("code", "paper")
    )
    assert float(paper / code) == pytest.approx(D / 2)
    with pytest.raises(UserError, match="scaling must be 'code' or 'paper', not 'mean'"):
        run(random_alignment, *features(), samples=0.0, scaling="mean")


def test_1_alpha_0_at_the_start_is_zero_with_zero_gradient():
    image, text = features()

    def loss(image, text, own_share):
        return similarity_distill(image, text, 1.0, *features(), 1.0, own_share=own_share)[0]

    zero, gradients = jax.value_and_grad(loss, (0, 1))(image, text, 0.0)
    _, other = jax.value_and_grad(loss, (0, 1))(image, text, 0.5)
    assert abs(zero) < 2e-5  # logits of up to 200, so that rounding is 2e-5
    for small, large in zip(gradients, other, strict=True):
        assert np.linalg.norm(small) < 2e-5 * np.linalg.norm(large)


def test_2_alpha_1_is_the_symmetric_clip_loss():
    image, text = (0.3 * x for x in features())
    args = (image, text, features(1), 1.0)

    def mixed(image, text, taught, scale):
        return similarity_distill(image, text, scale, *taught, 1.0, own_share=1.0)[0]

    def plain(image, text, taught, scale):
        return softmax_contrastive(image, text, scale)[0]

    got, want = (jax.value_and_grad(f, (0, 1, 3))(*args) for f in (mixed, plain))
    check((got[0], got[1][:2]), float(want[0]), want[1][:2])
    assert float(got[1][2]) == pytest.approx(float(want[1][2]), rel=2e-6)


def draws(shared, count=100_000, width=8):
    """Of many draws of r: the loss [N], its gradients by one pair's features [2, N, D], and these features."""
    rng = np.random.default_rng(3)
    image, text = rng.normal(size=(2, 1, width)).astype(np.float32)

    def of(seed):
        def value(*vectors):
            outputs = dict(zip(RAW, vectors, strict=True))
            batch = {"sample_seed": seed[None]}
            return random_alignment(outputs, batch, jnp.float32(0), shared=shared)[0]

        return jax.value_and_grad(value, (0, 1))(image, text)

    values, gradients = jax.jit(jax.vmap(of))(jnp.arange(count, dtype=jnp.uint32))
    return np.asarray(values), np.squeeze(np.stack(gradients), 2), (image, text)


def test_3_expectation_of_the_loss():
    values, _, (image, text) = draws(shared=True)
    expected = np.square(image).mean() + np.square(text).mean() + 2
    error = values.std() / np.sqrt(len(values))
    assert error < 0.005
    assert abs(values.mean() - expected) < 4 * error


@pytest.mark.parametrize("shared", [True, False])
def test_4_expected_gradient_and_its_correlation(shared):
    _, gradients, features = draws(shared, count=20_000)
    for found, z in zip(gradients, features, strict=True):
        error = found.std(0) / np.sqrt(len(found))
        assert (abs(found.mean(0) - 2 * z[0] / z.size) < 5 * error).all()
    for of_image, of_text in zip(*np.moveaxis(gradients, -1, 1), strict=True):
        found = np.corrcoef(of_image, of_text)[0, 1]
        assert found == pytest.approx(1.0 if shared else 0.0, abs=1e-5 if shared else 0.04)


def test_5_no_gradient_into_the_teacher_and_a_new_vector_each_step():
    image, text = features()

    def loss(taught):
        return similarity_distill(image, text, 1.0, *taught, 1.0, own_share=0.5)[0]

    assert not any(np.any(g) for g in jax.grad(loss)(features(1)))
    values = [float(run(random_alignment, image, text, samples=s)[0]) for s in (0.0, 24.0, 24.0)]
    assert values[0] != values[1] == values[2]
    r = [np.asarray(random_targets(SEEDS, s, D)).ravel() for s in (0.0, 24.0)]
    assert abs(np.corrcoef(*r)[0, 1]) < 0.25


def test_6_hand_case():
    one, zero = np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32)
    value, _ = similarity_distill(one, one, 1.0, zero, zero, 1.0, own_share=0.5)
    want = 0.75 * np.log(0.75 / 0.7310586) + 0.25 * np.log(0.25 / 0.2689414)
    assert want == pytest.approx(0.00093, abs=5e-6)
    assert float(value) == pytest.approx(want, abs=2e-7)


@pytest.mark.parametrize("std", [0.0, 10.0])
def test_other_variances(std):
    image, text = features()
    value, _ = run(random_alignment, image, text, samples=8.0, std=std)
    r = std * np.asarray(random_targets(SEEDS, 8.0, D))
    assert float(value) == pytest.approx(
        np.mean((image - r) ** 2) + np.mean((text - r) ** 2), rel=1e-5
    )
