"""The note's points about losses, and each loss against a float64 oracle on 1, 2, 4 and 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.losses.assignment import sinkhorn
from clipjax.losses.softmax import softmax
from clipjax.mesh import batch_sharding, make_mesh
from experiments.improved_baselines import losses
from tests.experiments.improved_baselines import oracle
from tests.losses.oracle import distance

B, A, D = 16, 2, 6
TOLERANCE = 2e-6
devices = pytest.mark.parametrize("devices", [1, 2, 4, 8])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def embeddings(views=A):
    """Names of the model's outputs -> arrays; images and texts of a sample are alike."""
    both = normal(B, D)

    def near(*shape, seed):
        return unit(both.reshape(B, *[1] * (len(shape) - 2), D) + normal(*shape, seed=seed))

    found = {"image_embedding": near(B, D, seed=1), "text_embedding": near(B, D, seed=2)}
    found |= {"logit_scale": np.float32(14.0), "local_logit_scale": np.float32(10.0)}
    if views:
        found["local_image_embedding"] = near(B, views, D, seed=3)
        found["local_text_embedding"] = near(B, views, D, seed=4)
    return found


def value_and_grads(loss, outputs, count, with_mesh=False, **settings):
    """Value and gradients by every output, the rows split over so many devices."""
    mesh = make_mesh(devices=jax.devices()[:count])
    placed = {
        k: jax.device_put(x, batch_sharding(mesh)) if np.ndim(x) else jnp.asarray(x)
        for k, x in outputs.items()
    }
    given = {"mesh": mesh} if with_mesh else {}
    function = jax.value_and_grad(lambda o: loss(o, {}, **given, **settings)[0])
    # Optimised as in real runs: the order of sums decides the last bits.
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": "3"})
    with jax.set_mesh(mesh):
        return compiled(placed)


def compare(got, value, grads):
    assert distance(got[0], value) < TOLERANCE
    for name, want in grads.items():
        assert distance(got[1][name], want) < TOLERANCE * 2, name


@pytest.mark.parametrize(
    ("devices", "gathered"), [(1, True), (2, True), (4, True), (8, True), (1, False), (4, False)]
)
def test_cl2l(devices, gathered):
    o = embeddings()
    settings = dict(label_smoothing=0.1, total="sum", gather_gradient=gathered)
    got = value_and_grads(losses.cl2l, o, devices, with_mesh=True, **settings)
    names = {"image": "image_embedding", "text": "text_embedding", "scale": "logit_scale"}
    names |= {"h_image": "local_image_embedding", "h_text": "local_text_embedding"}
    names |= {"h_scale": "local_logit_scale"}
    value, grads = oracle.cl2l({k: o[v] for k, v in names.items()}, 0.1, "sum", gathered)
    compare(got, value, {names[k]: x for k, x in grads.items()})


@devices
def test_barlow(devices):
    o = {"barlow_image": normal(B, 1 + A, 5), "barlow_text": normal(B, 1 + A, 5, seed=1)}
    value, grads = oracle.barlow(*o.values())
    compare(value_and_grads(losses.barlow, o, devices), value, dict(zip(o, grads, strict=True)))


@devices
def test_siamese_cosine(devices):
    p, v = ([normal(B, 1 + A, 5, seed=s) for s in seeds] for seeds in ((1, 2), (3, 4)))
    names = [f"siamese_{side}" for side in ("image", "text")]
    o = {f"{n}_prediction": x for n, x in zip(names, p, strict=True)}
    o |= {f"{n}_target": x for n, x in zip(names, v, strict=True)}
    value, grads = oracle.siamese(p, v)
    want = {f"{n}_prediction": x for n, x in zip(names, grads, strict=True)}
    got = value_and_grads(losses.siamese_cosine, o, devices)
    compare(got, value, want)
    assert not any(np.any(got[1][f"{n}_target"]) for n in names)


@devices
def test_swapped_assignment(devices):
    o = embeddings()
    names = ("local_image_embedding", "local_text_embedding", "local_logit_scale")
    value, grads = oracle.swapped(*(o[n] for n in names))
    got = value_and_grads(losses.swapped_assignment, o, devices)
    compare(got, value, dict(zip(names, grads, strict=True)))


@devices
def test_prototype_assignment(devices):
    o = {"image_prototypes": normal(B, 6) / 4, "text_prototypes": normal(B, 6, seed=1) / 4}
    value, grads = oracle.prototypes(*o.values())
    got = value_and_grads(losses.prototype_assignment, o, devices)
    compare(got, value, dict(zip(o, grads, strict=True)))


@pytest.mark.parametrize("gathered", [True, False])
def test_without_strong_views_cl2l_is_clip(gathered):
    o = embeddings(views=0)
    rule = dict(gather_gradient=gathered)
    got = value_and_grads(losses.cl2l, o, 1, label_smoothing=0.0, **rule)
    want = value_and_grads(softmax, o, 1)
    if not gathered:  # under the same rule: half of the gradient is that of the other direction
        named = dict(image=o["image_embedding"], text=o["text_embedding"], scale=o["logit_scale"])
        named |= dict(h_image=np.zeros((B, 0, D)), h_text=np.zeros((B, 0, D)), h_scale=1.0)
        grads = oracle.cl2l(named, 0.0, "average", gathered)[1]
        want = want[0], {"image_embedding": grads["image"], "text_embedding": grads["text"]}
    assert distance(got[0], want[0]) < 1e-6
    for name in ("image_embedding", "text_embedding"):
        assert distance(got[1][name], want[1][name]) < TOLERANCE, name


def test_weights_are_a_third_and_two_thirds_and_sum_doubles():
    loss, metrics = losses.cl2l(embeddings(), {})
    expected = metrics["global"] / 3 + 2 * metrics["local"] / 3
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(losses.cl2l(embeddings(), {}, total="sum")[0], 2 * loss, rtol=1e-7)


def test_label_smoothing_acts_on_the_local_loss_only():
    o = embeddings()
    o["local_text_embedding"] = o["local_image_embedding"]
    o["local_logit_scale"] = np.float32(100.0)  # confident
    hard, soft = (losses.cl2l(o, {}, label_smoothing=s)[1] for s in (0.0, 0.1))
    assert hard["global"] == soft["global"]
    assert soft["local"] > hard["local"] + 1


def test_barlow_of_the_same_decorrelated_features_is_zero_and_of_no_correlation_its_width():
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)[:, None]
    assert losses.barlow({"barlow_image": signs, "barlow_text": signs}, {})[0] == 0
    features = np.zeros((4, 1, 8192), np.float32)
    loss = jax.jit(lambda x: losses.barlow({"barlow_image": x, "barlow_text": x}, {})[0])(features)
    np.testing.assert_allclose(loss, 204.8, rtol=1e-6)


@pytest.mark.parametrize(("sign", "value"), [(1, 0.0), (-1, 4.0)])
def test_siamese_cosine_of_parallel_and_opposite_vectors(sign, value):
    x = normal(B, 1, 5)
    o = {f"siamese_{side}_prediction": 3 * x for side in ("image", "text")}
    o |= {f"siamese_{side}_target": sign * x for side in ("image", "text")}
    np.testing.assert_allclose(losses.siamese_cosine(o, {})[0], value, atol=1e-5)


def test_targets_of_clear_pairs_are_nearly_the_identity():
    got = np.asarray(sinkhorn(np.eye(8, dtype=np.float32), iterations=3))
    np.testing.assert_allclose(got, np.eye(8), atol=1e-6)
    np.testing.assert_allclose(got.sum(0), 1.0, atol=1e-6)


def test_swalip_does_not_change_when_both_modalities_swap_their_views():
    o = embeddings()
    local = [name for name in o if name.startswith("local_") and np.ndim(o[name])]
    turned = o | {name: o[name][:, ::-1] for name in local}
    loss = functools.partial(losses.swapped_assignment, batch={})
    np.testing.assert_allclose(loss(turned)[0], loss(o)[0], rtol=1e-6)


def test_refused():
    with pytest.raises(UserError, match="two strong views, not 1"):
        losses.swapped_assignment(embeddings(views=1), {})
    with pytest.raises(UserError, match="must be 'average' or 'sum'"):
        losses.cl2l(embeddings(), {}, total="mean")
