"""The model: views, dropout, batch norms under the gradient cache, the momentum copy, and the blend at inference."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax import rules
from clipjax.config import load_config
from clipjax.defaults import base_config
from clipjax.mesh import make_mesh
from clipjax.models import initialise, make_model
from clipjax.prepare import prepare
from clipjax.step import init_state
from experiments.improved_baselines.arms import ARMS, FOLLOW
from experiments.improved_baselines.configs.paper import SETS

CONFIGS = Path(__file__).parents[3] / "experiments" / "improved_baselines" / "configs"
ONE = make_mesh(devices=jax.devices()[:1])


def config_of(file, *overrides):
    return load_config(f"{CONFIGS}/{file}", base_config(), overrides)


def rows(prepared, seed=0):
    """A batch of random pixels and ids."""
    rng = np.random.default_rng(seed)
    high = {"uint8": 256, "int32": 400, "uint32": 2**31}
    return {
        k: rng.integers(0, high[x.dtype.name], x.shape).astype(x.dtype)
        for k, x in prepared.batch.items()
    }


def stepped(*overrides):
    """(prepared, parameters before, parameters after two steps, metrics of the first)."""
    prepared = prepare(config_of("tiny.py", *overrides), ONE)
    state = init_state(prepared.model, prepared.config, prepared.optimizer, ONE)
    start = jax.device_get(rules.paths(state.params))
    with jax.set_mesh(ONE):
        state, metrics = prepared.step(state, rows(prepared))
        middle = jax.device_get(rules.paths(state.params))
        state, _ = prepared.step(state, rows(prepared, 1))
    return start, middle, jax.device_get(rules.paths(state.params)), jax.device_get(metrics), state


@pytest.fixture(scope="module")
def plain():
    return stepped()


def test_byolip_target_is_a_mean_of_old_and_new_and_gets_no_gradient(plain):
    start, middle, _, _, state = plain
    followed = {p: p.removeprefix("momentum/") for p in start if p.startswith("momentum/")}
    own = [p for p in followed if p.endswith(("/mean", "/var"))]
    assert own
    for path in own:  # the statistics are those of the copy's own batches
        del followed[path]
        assert np.any(middle[path] != start[path])
    for path, source in followed.items():
        np.testing.assert_array_equal(start[path], start[source])  # it begins as a copy
        expected = 0.99 * start[path] + 0.01 * middle[source]
        np.testing.assert_allclose(middle[path], expected, rtol=1e-5, atol=1e-7)
    assert any(np.any(middle[p] != start[p]) for p in followed)
    moments = [
        jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)
    ]
    assert not any("momentum/" in k for k in moments)
    assert FOLLOW[2] == 0.99


@pytest.mark.slow
def test_the_gradient_cache_changes_nothing(plain):
    cached = stepped("config.grad_cache=2")
    for name, x in plain[3].items():
        np.testing.assert_allclose(cached[3][name], x, rtol=2e-5, atol=1e-7, err_msg=name)
    for path in plain[1]:
        if path.endswith(("/mean", "/var")):
            np.testing.assert_allclose(cached[1][path], plain[1][path], rtol=1e-4, atol=1e-6)


def test_running_statistics_move_once_a_view(plain):
    start, middle, *_ = plain
    path = "siamese_image/norm_1"
    # Features of three views, each normalised by itself: a running mean of three steps with momentum 0.9.
    assert np.any(middle[f"{path}/mean"] != start[f"{path}/mean"])
    assert f"{path}/scale" not in start
    assert "barlow_text/norm_1/scale" in start
    # Three alike views move a mean that begins at 0 by 1 - 0.9^3 of it, one by 0.1 of it.
    model, params = model_and_params("tiny.py")
    batch = batch_of(1)

    @jax.jit
    def mean(batch):
        both = lambda m: m.whole_batch(m(batch, train=True), batch, train=True)  # noqa: E731
        _, written = model.apply({"params": params}, method=both, mutable=["updates"])
        return written["updates"]["siamese_image"]["norm_1"]["mean"]

    three = batch | {k: np.repeat(batch[k], 3, axis=1) for k in ("image", "text")}
    np.testing.assert_allclose(mean(three), 2.71 * mean(batch), rtol=1e-4, atol=1e-6)


def model_and_params(file, **changes):
    config = config_of(file)
    section = config.model.copy_and_resolve_references().unlock()
    section.update(changes)
    model = make_model(section)
    batch = {
        "image": np.zeros((2, 16, 16, 3), np.uint8),
        "text": np.zeros((2, 8), np.int32),
        "sample_seed": np.zeros(2, np.uint32),
    }
    boxed = jax.jit(lambda k: initialise(model, k, batch))(jax.random.key(0))
    return model, jax.tree.map(
        lambda x: getattr(x, "value", x), boxed, is_leaf=lambda x: hasattr(x, "value")
    )


def batch_of(views, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (4, views, 16, 16, 3)).astype(np.uint8),
        "text": rng.integers(1, 400, (4, views, 8)).astype(np.int32),
        "sample_seed": rng.integers(0, 99, 4).astype(np.uint32),
    }


def test_views_and_text_dropout():
    model, params = model_and_params("tiny.py:rocket")
    batch = batch_of(3)
    batch["text"][:, 2] = batch["text"][:, 1]

    @jax.jit
    def outputs(batch):
        return model.apply({"params": params}, batch, train=True)

    one, two = outputs(batch), outputs(batch | {"sample_seed": batch["sample_seed"] + 1})
    weak, strong, other = (one["text_features"][:, v] for v in range(3))
    np.testing.assert_array_equal(weak, two["text_features"][:, 0])  # no dropout
    assert np.any(strong != two["text_features"][:, 1])
    assert np.any(strong != other)  # the same text, another view
    single = {k: x[:, 0] if x.ndim > 1 else x for k, x in batch.items()}
    alone = jax.jit(lambda b: model.apply({"params": params}, b))(single)
    for name in ("image_embedding", "text_embedding"):
        np.testing.assert_allclose(one[name], alone[name], atol=1e-6)


def test_parameters_do_not_depend_on_the_number_of_views():
    model, params = model_and_params("tiny.py")
    many = jax.eval_shape(lambda k: initialise(model, k, batch_of(3)), jax.random.key(0))
    assert jax.tree.structure(jax.tree.map(lambda x: 0, params)) == jax.tree.structure(
        jax.tree.map(lambda x: 0, many, is_leaf=lambda x: hasattr(x, "value"))
    )


def test_blend_at_inference_mixes_the_two_similarities():
    model, params = model_and_params("tiny.py:rocket")
    batch = {k: x[:, 0] if x.ndim > 1 else x for k, x in batch_of(1).items()}
    found = {}
    for blend in (1.0, 0.0, 0.3):
        outputs = jax.jit(model.clone(blend=blend).apply)({"params": params}, batch)
        image, text = outputs["image_embedding"], outputs["text_embedding"]
        np.testing.assert_allclose(jnp.linalg.norm(image, axis=1), 1.0, rtol=1e-5)
        found[blend] = image @ text.T
    np.testing.assert_allclose(found[0.3], 0.3 * found[1.0] + 0.7 * found[0.0], atol=1e-6)


def test_separate_heads_for_strong_views_and_shared_local_heads():
    _, params = model_and_params("tiny.py", separate=True, local=())
    assert {"strong_barlow_image", "strong_siamese_text", "strong_predict_text"} <= params.keys()
    assert not {"local_image", "local_logit_scale", "strong_local_image"} & params.keys()


@pytest.mark.parametrize("arm", ARMS)
def test_every_small_arm_can_be_made(arm):
    config = config_of(f"small.py:{arm}")
    assert config.total_samples * (3 if arm.startswith("rocket") else 1) <= 140_000
    assert ("local" in config.model) == arm.startswith("rocket")


@pytest.mark.parametrize(
    ("file", "dropout"),
    [("small.py:", 0.05), ("tiny.py:", 0.2)]
    + [(f"paper.py:{data},", SETS[data][1]) for data in SETS],
)
def test_dropout_acts_on_strong_texts_alone(file, dropout):
    for arm in ARMS:
        found = config_of(file + arm).model.text.dropout
        assert found == (dropout if arm.startswith("rocket") else 0.0), arm


@pytest.mark.parametrize("arm", ARMS)
def test_what_an_arm_adds(arm):
    base, *extras = arm.split("_")
    config = config_of(f"paper.py:cc12m,{arm}")
    losses = {name: entry.get("weight", 1.0) for name, entry in config.losses.items()}
    weights = {"barlip": 1.0, "siamlip": 1.0, "byolip": 1.0, "swalip": 0.2}
    assert losses == {"contrastive": 1.0} | {x: weights[x] for x in extras}
    if base == "rocket":
        cl2l = config.losses.contrastive
        assert cl2l.label_smoothing == (0.0 if "swalip" in extras else 0.1)
        assert cl2l.total == "sum"
        assert ("local_logit_scale", 0.0, math.log(100)) in config.optim.clip_values
        assert len(config.data.features.image["views"]) == 3
    if config.model.get("local"):
        module = make_model(config.model)
        assert module.init_local_scale == pytest.approx(10.0)
    assert ("prototype" in config.model and bool(config.model.prototype)) == (arm == "clip_swalip")
    if arm == "clip_swalip":
        pattern, pairs = config.optim.lr_multipliers[0]
        assert (pattern, pairs) == ("centres", ((409_599, 0.0), (409_600, 1.0)))  # 100 steps
        assert config.optim.decay_rules[0] == ("centres", 1.0)
    assert bool(config.optim.follow) == ("byolip" in extras)


@pytest.mark.parametrize("arg", ["yfcc15m,rocket_byolip", "cc3m,clip_swalip,vit_b16"])
def test_the_papers_recipe_can_be_traced(arg):
    prepared = prepare(config_of(f"paper.py:{arg}"), make_mesh())
    byolip = "byolip" in arg
    text = prepared.batch["text"].shape
    assert text == ((4096, 3, 77) if byolip else (4096, 77))
    paths = rules.paths(prepared.state.params)
    assert ("momentum/siamese_image/layer_1/kernel" in paths) == byolip
    assert ("strong_predict_image/norm_0/mean" in paths) == byolip
    assert ("centres" in paths) != byolip
