"""Schedules, optimizers, and (regex, value) rules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from clipjax import optim, rules
from clipjax.defaults import base_config
from clipjax.errors import UserError


def settings(**changes):
    section = base_config().optim
    section.update(clip_values=(), decay_rules=((".*", 0.0),), weight_decay=0.0)
    section.update(changes)
    return section


# Schedules


def values(kind, steps, *, peak=2.0, total=1000, warmup=100, batch_size=10, final=0.0):
    rate = optim.schedule(
        kind, peak=peak, total=total, warmup=warmup, batch_size=batch_size, final=final
    )
    return [float(rate(jnp.int32(step))) for step in steps]


@pytest.mark.parametrize("kind", ["cosine", "constant", "rsqrt"])
def test_warm_up_is_linear_and_moves_at_once(kind):
    np.testing.assert_allclose(values(kind, range(10)), 2.0 * np.arange(1, 11) / 10, rtol=1e-6)


def test_schedules_against_closed_forms():
    steps = np.arange(10, 101, 7)
    done = (steps - 10) / 90
    cosine = 2.0 * (0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose(values("cosine", steps, final=0.1), cosine, rtol=1e-5)
    np.testing.assert_allclose(values("constant", steps), 2.0, rtol=1e-6)
    np.testing.assert_allclose(values("rsqrt", steps), 2 * np.sqrt(10 / (steps + 1)), rtol=1e-6)


def test_schedule_ends_and_stays():
    assert values("cosine", [100, 500], final=0.25) == pytest.approx([0.5, 0.5])
    assert values("cosine", [100]) == pytest.approx([0.0], abs=1e-7)


def test_no_warm_up():
    assert values("cosine", [0], warmup=0) == [2.0]
    assert values("rsqrt", [0, 3], warmup=0) == [2.0, 1.0]
    assert values("constant", [0], warmup=0) == [2.0]


def test_the_clock_is_samples():
    """Twice the batch, half the steps: the same rate after the same samples."""
    a = values("cosine", [20, 40, 60], batch_size=10)
    b = values("cosine", [10, 20, 30], batch_size=20)
    np.testing.assert_allclose(b, a, rtol=1e-5)


def test_schedule_mistakes():
    with pytest.raises(UserError, match=r"no schedule named 'cosin' .did you mean 'cosine'"):
        values("cosin", [0])
    with pytest.raises(UserError, match=r"warmup \(2000 samples\) is longer than the run"):
        values("constant", [0], warmup=2000)


# AdamW against float64


def adamw_oracle(params, gradients, rate, *, b1, b2, eps, decay, multiplier, clip):
    """Loshchilov & Hutter 2019 in float64; the decay is not scaled by Adam's denominator."""
    params = {p: np.asarray(x, np.float64) for p, x in params.items()}
    m = {p: np.zeros_like(x) for p, x in params.items()}
    v = {p: np.zeros_like(x) for p, x in params.items()}
    for t, gradient in enumerate(gradients, 1):
        gradient = {p: np.asarray(g, np.float64) for p, g in gradient.items()}
        norm = math.sqrt(sum((g**2).sum() for g in gradient.values()))
        factor = 1.0 if clip is None or norm <= clip else clip / norm
        for p, g in gradient.items():
            g = g * factor
            m[p] = b1 * m[p] + (1 - b1) * g
            v[p] = b2 * v[p] + (1 - b2) * g * g
            update = (m[p] / (1 - b1**t)) / (np.sqrt(v[p] / (1 - b2**t)) + eps)
            update = update + decay[p] * params[p]
            params[p] = params[p] - rate(t - 1) * multiplier[p] * update
    return params


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_adamw_against_float64(clip):
    rng = np.random.default_rng(0)
    shapes = {"a/kernel": (4, 3), "a/bias": (3,), "t/blocks/mlp/kernel": (3, 2, 2), "scale": ()}
    params = {p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    gradients = [
        {p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()} for _ in range(6)
    ]
    config = settings(
        clip_norm=clip,
        weight_decay=0.3,
        decay_rules=((".*kernel", 1.0), (".*bias", 0.5), (".*", 0.0)),
        lr_multipliers=(("a/.*", 0.1), ("t/blocks/2/.*", 3.0), (".*", 1.0)),
    )
    rate = optim.schedule("constant", peak=0.05, total=60, warmup=20, batch_size=10)
    optimizer = optim.make_optimizer(config, rules.tree(params), rate)
    flat = {p: jnp.asarray(x) for p, x in params.items()}
    state, update = optimizer.init(flat), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update({p: jnp.asarray(g) for p, g in gradient.items()}, state, flat)
        flat = optax.apply_updates(flat, updates)
    expected = adamw_oracle(
        params,
        gradients,
        lambda step: 0.05 * min(1, (step + 1) / 2),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        decay={"a/kernel": 0.3, "a/bias": 0.15, "t/blocks/mlp/kernel": 0.3, "scale": 0.0},
        multiplier={
            "a/kernel": 0.1,
            "a/bias": 0.1,
            "t/blocks/mlp/kernel": np.array([1.0, 1.0, 3.0]).reshape(3, 1, 1),
            "scale": 1.0,
        },
        clip=clip,
    )
    for path, want in expected.items():
        np.testing.assert_allclose(flat[path], want, rtol=2e-5, atol=2e-6, err_msg=path)
        assert flat[path].dtype == jnp.float32


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_lowers_a_quadratic(name):
    rng = np.random.default_rng(1)
    target = {
        "image/transformer/blocks/mlp/fc_in/kernel": rng.normal(size=(2, 8, 16)),
        "image/transformer/blocks/attention/qkv_kernel": rng.normal(size=(2, 8, 3, 2, 4)),
        "image/transformer/blocks/attention/out_kernel": rng.normal(size=(2, 8, 8)),
        "text/token_embedding": rng.normal(size=(64, 40)),
        "text/bias": rng.normal(size=(40,)),
        "logit_scale": rng.normal(size=()),
    }
    target = {p: jnp.asarray(0.1 * x, jnp.float32) for p, x in target.items()}
    config = settings(name=name, b2=0.95)
    rate = optim.schedule("cosine", peak=0.02, total=100, warmup=5, batch_size=1)
    optimizer = optim.make_optimizer(config, rules.tree(target), rate)

    def loss(flat):
        return sum(jnp.sum((flat[p] - target[p]) ** 2) for p in target)

    @jax.jit
    def step(flat, state):
        updates, state = optimizer.update(jax.grad(loss)(flat), state, flat)
        return optax.apply_updates(flat, updates), state

    flat = jax.tree.map(jnp.zeros_like, target)
    state, start = optimizer.init(flat), float(loss(flat))
    for _ in range(100):
        flat, state = step(flat, state)
    assert float(loss(flat)) < 0.02 * start
    for path, value in flat.items():
        assert float(jnp.sum((value - target[path]) ** 2)) < 0.2 * float(
            jnp.sum(target[path] ** 2)
        ), path


def test_decay_is_decoupled_for_every_optimizer():
    """With no gradient at all, each step multiplies a decayed parameter by 1 - rate * decay."""
    for name in optim.OPTIMIZERS:
        config = settings(name=name, weight_decay=0.5, decay_rules=(("w", 1.0), (".*", 0.0)))
        optimizer = optim.make_optimizer(
            config, {"w": jnp.ones(3), "v": jnp.ones(3)}, lambda _: 0.1
        )
        flat = {"w": jnp.ones(3), "v": jnp.ones(3)}
        updates, _ = jax.jit(optimizer.update)(
            jax.tree.map(jnp.zeros_like, flat), optimizer.init(flat), flat
        )
        flat = optax.apply_updates(flat, updates)
        np.testing.assert_allclose(flat["w"], 0.95, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(flat["v"], 1.0, err_msg=name)


def test_adafactor_forgets_at_the_rate_of_b2():
    """Second moment: decay min(b2, 1 - t^-0.8), so late in a run it is b2."""
    flat = {"w": jnp.zeros(2)}
    optimizer = optim.make_optimizer(settings(name="adafactor", b2=0.5), flat, lambda _: 1.0)
    state, moments = optimizer.init(flat), []
    for gradient in (4.0, 0.0, 0.0, 0.0):
        _, state = optimizer.update({"w": jnp.full(2, gradient)}, state, flat)
        moments += [
            float(leaf["w"][0])
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                state, is_leaf=lambda x: isinstance(x, dict)
            )
            if jax.tree_util.keystr(path).endswith(".v")
        ]
    # 1 - 2^-0.8 is 0.43, below b2; 1 - 3^-0.8 is 0.58, above it.
    np.testing.assert_allclose(
        moments, 16 * np.array([1, 0.4257, 0.4257 / 2, 0.4257 / 4]), rtol=1e-3
    )


def test_muon_moves_each_matrix_along_its_orthogonal_factor():
    rng = np.random.default_rng(2)
    path = "blocks/mlp/kernel"
    gradient = jnp.asarray(rng.normal(size=(2, 6, 6)), jnp.float32)
    flat = {path: jnp.zeros_like(gradient)}
    optimizer = optim.make_optimizer(settings(name="muon"), rules.tree(flat), lambda _: 1.0)
    updates, _ = jax.jit(optimizer.update)({path: gradient}, optimizer.init(flat), flat)
    for layer in range(2):
        u, _, vt = np.linalg.svd(np.asarray(gradient[layer], np.float64))
        moved = np.asarray(updates[path][layer], np.float64)
        # Newton-Schulz drives singular values to about 1, not exactly; 0.2 sqrt(6) is the AdamW scale.
        singular = np.linalg.svd(moved, compute_uv=False) / (0.2 * math.sqrt(6))
        assert singular.min() > 0.6
        assert singular.max() < 1.3
        cosine = -(moved * (u @ vt)).sum() / np.linalg.norm(moved) / math.sqrt(6)
        assert cosine > 0.97


def test_unknown_optimizer():
    with pytest.raises(UserError, match=r"no optimizer named 'adam' .did you mean 'adamw'"):
        optim.make_optimizer(settings(name="adam"), {"w": jnp.ones(3)}, lambda _: 0.1)


# Rules

PARAMS = {
    "image": {"stem": {"kernel": np.zeros((2, 3))}, "blocks": {"mlp": {"bias": np.zeros((3, 5))}}},
    "logit_scale": np.zeros(()),
}


def test_first_match_wins():
    got = rules.match((("image/stem/.*", 1), ("image/.*", 2), (".*", 3)), PARAMS, "optim.x")
    assert got == {"image/blocks/mlp/bias": 2, "image/stem/kernel": 1, "logit_scale": 3}
    # In another order the second pattern never gets a turn.
    got = rules.match((("image/.*", 2), ("image/stem/.*", 1), (".*", 3)), PARAMS, "optim.x")
    assert got["image/stem/kernel"] == 2


def test_a_pattern_matches_the_whole_path():
    with pytest.raises(UserError, match=r"matches no parameter, 'stem'"):
        rules.match((("stem", 1), (".*", 0)), PARAMS, "optim.x")


def test_layers_of_a_stack_have_paths_of_their_own():
    got = rules.match(((".*/blocks/[01]/.*", 4.0), (".*", 1.0)), PARAMS, "optim.x")
    np.testing.assert_array_equal(got["image/blocks/mlp/bias"], [[4.0], [4.0], [1.0]])
    assert got["image/blocks/mlp/bias"].dtype == np.float32
    assert rules.match(((".*/blocks/.*", 4.0), (".*", 1.0)), PARAMS, "optim.x")[
        "image/blocks/mlp/bias"
    ] == pytest.approx(4.0)
    with pytest.raises(UserError, match="matches no parameter"):
        rules.match(((".*/blocks/3/.*", 1), (".*", 0)), PARAMS, "optim.x")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((("image/stm/kernel", 1), (".*", 0)), "did you mean 'image/stem/kernel'"),
        ((("image/.*", 1),), "says nothing about the parameter 'logit_scale'"),
        ((("image/(", 1), (".*", 0)), "is not a valid regular expression"),
        ((("image/.*",), (".*", 0)), "must be a tuple of"),
        (("image/.*", True), "must be a tuple of"),
    ],
)
def test_wrong_rules(wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        rules.match(wrong, PARAMS, "optim.freeze")
    assert "config.optim.freeze" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_split_into_trained_and_frozen():
    trained, frozen, mask = optim.split(PARAMS, (("image/stem/.*", True), (".*", False)))
    assert set(frozen) == {"image/stem/kernel"}
    assert set(trained) == set(mask) == {"image/blocks/mlp/bias", "logit_scale"}
    trained, frozen, mask = optim.split(PARAMS, ((".*/blocks/0/.*", True), (".*", False)))
    assert not frozen
    np.testing.assert_array_equal(mask["image/blocks/mlp/bias"], [[0.0], [1.0], [1.0]])
    with pytest.raises(UserError, match="freezes every parameter"):
        optim.split(PARAMS, ((".*", True),))


def test_frozen_layers_count_neither_for_clipping_nor_for_decay():
    config = settings(
        freeze=((".*/blocks/0/.*", True), (".*", False)),
        clip_norm=1.0,
        weight_decay=1.0,
        decay_rules=((".*", 1.0),),
    )
    path = "t/blocks/w"
    flat = {path: jnp.ones((2, 4))}
    gradient = {path: jnp.stack([jnp.full(4, 1e6), jnp.full(4, 0.1)])}
    optimizer = optim.make_optimizer(config, rules.tree(flat), lambda _: 0.1)
    updates, state = optimizer.update(gradient, optimizer.init(flat), flat)
    np.testing.assert_array_equal(updates[path][0], 0.0)
    # The frozen layer's huge gradient did not shrink the other's: its norm is 0.2, below the limit.
    (adam,) = [
        s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    ]
    np.testing.assert_allclose(adam.mu[path][1], 0.1 * (1 - config.b1), rtol=1e-5)


def test_clip_values():
    params = {"logit_scale": jnp.float32(9.0), "w": jnp.asarray([-9.0, 9.0])}
    got = optim.clip_values(params, (("logit_scale", 0.0, math.log(100.0)),))
    assert float(got["logit_scale"]) == pytest.approx(math.log(100.0))
    np.testing.assert_array_equal(got["w"], params["w"])
    got = optim.clip_values(params, (("w", -1.0, 2.0),))
    np.testing.assert_array_equal(got["w"], [-1.0, 2.0])
    assert float(got["logit_scale"]) == 9.0
    assert ConfigDict(optim.clip_values(params, ())) == ConfigDict(params)
    with pytest.raises(UserError, match="matches no parameter, 'logit_scal'"):
        optim.clip_values(params, (("logit_scal", 0.0, 1.0),))


# What an experiment brings


def one_step(section, gradient, steps=1, batch_size=1):
    """What some steps on one gradient add to parameters that are ones."""
    params = {"w": jnp.ones(3)}
    made = optim.make_optimizer(section, params, lambda step: jnp.float32(0.1), batch_size)
    state, moved = made.init(params), []
    for _ in range(steps):
        updates, state = made.update({"w": jnp.asarray(gradient)}, state, params)
        moved.append(np.asarray(updates["w"]))
    return moved


def test_sgd():
    gradient = np.array([1.0, -2.0, 4.0], np.float32)
    (plain,) = one_step(settings(name="sgd", settings={"momentum": 0.0}), gradient)
    np.testing.assert_allclose(plain, -0.1 * gradient, rtol=1e-6)
    heavy = one_step(settings(name="sgd"), gradient, steps=3)
    for update, factor in zip(heavy, (1, 1.9, 2.71), strict=True):
        np.testing.assert_allclose(update, -0.1 * factor * gradient, rtol=1e-6)
    nesterov = settings(name="sgd", settings={"momentum": 0.5, "nesterov": True})
    np.testing.assert_allclose(one_step(nesterov, gradient)[0], -0.15 * gradient, rtol=1e-6)


def test_sgd_with_l2_in_the_sum():
    """The parameter is 1 all the time here: it is decayed like a gradient, momentum included."""
    gradient = np.array([1.0, -2.0, 4.0], np.float32)
    moved = one_step(settings(name="sgd", settings={"l2": 0.5}), gradient, steps=3)
    for update, factor in zip(moved, (1, 1.9, 2.71), strict=True):
        np.testing.assert_allclose(update, -0.1 * factor * (gradient + 0.5), rtol=1e-6)


def test_an_optimizer_by_import_path():
    section = settings(name="tests.tiny_core:signs", settings={"size": 2.0})
    (moved,) = one_step(section, np.array([3.0, -5.0, 0.5], np.float32))
    np.testing.assert_allclose(moved, [-0.2, 0.2, -0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"name": "tests.tiny_core:no_optimizer"},
            "returns an optax.GradientTransformation, not a str",
        ),
        ({"name": "tests.tiny_core:sign"}, "has no attribute 'sign'"),
        (
            {"name": "sgd", "settings": {"momentun": 0.5}},
            "has no setting 'momentun' .did you mean 'momentum'",
        ),
        ({"name": "adamw", "settings": {"b1": 0.5}}, "The optimizer 'adamw' has no setting 'b1'"),
        ({"name": "sgd", "settings": {"momentum": 1.0}}, "must be at least 0 and below 1, not 1.0"),
        ({"name": "sgd", "settings": {"l2": -1.0}}, "l2 must be a number of at least 0, not -1.0"),
    ],
)
def test_optimizers_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        one_step(settings(**changes), np.zeros(3, np.float32))


def test_a_schedule_by_import_path():
    np.testing.assert_allclose(
        values("tests.tiny_core:linear", [0, 25, 50]), [2.0, 1.5, 1.0], rtol=1e-6
    )
    with pytest.raises(UserError, match=r"must give a float scalar for a step, not float32\[3\]"):
        values("tests.tiny_core:no_schedule", [0])


def test_multipliers_that_change_with_samples():
    """Nothing moves until 4 samples, then ever more until 12; and the layers of a stack have their own."""
    rules_ = (("w", ((4, 0.0), (12, 1.0))), (".*", 1.0))
    section = settings(name="sgd", settings={"momentum": 0.0}, lr_multipliers=rules_)
    moved = one_step(section, np.ones(3, np.float32), steps=8, batch_size=2)
    want = [-0.1 * np.clip((2 * k - 4) / 8, 0, 1) for k in range(8)]
    np.testing.assert_allclose([m[0] for m in moved], want, rtol=1e-5, atol=1e-9)

    stack = {"blocks": {"w": jnp.ones((3, 2))}, "v": jnp.ones(2)}
    rules_ = (("blocks/0/.*", ((0, 0.0), (10, 1.0))), ("blocks/1/.*", 0.5), (".*", 2.0))
    section = settings(name="sgd", settings={"momentum": 0.0}, lr_multipliers=rules_)
    made = optim.make_optimizer(section, stack, lambda step: jnp.float32(1.0), 5)
    flat = rules.paths(stack)
    state = made.init(flat)
    for first in (0.0, 0.5, 1.0, 1.0):
        updates, state = made.update(flat, state, flat)
        np.testing.assert_allclose(updates["blocks/w"][:, 0], [-first, -0.5, -2.0])
        np.testing.assert_allclose(updates["v"], -2.0)


def test_multipliers_that_do_not_change_have_no_state():
    params = {"w": jnp.ones(3)}
    fixed, changing = (
        optim.make_optimizer(settings(lr_multipliers=((".*", m),)), params, lambda step: 0.1)
        for m in (0.5, ((0, 0.5), (9, 1.0)))
    )
    count = lambda made: len(jax.tree.leaves(made.init(params)))  # noqa: E731
    assert count(changing) == count(fixed) + 1
    with pytest.raises(UserError, match=r"multiplier of config.optim.lr_multipliers \('\.\*'\)"):
        optim.make_optimizer(settings(lr_multipliers=((".*", ((5, 1), (5, 2))),)), params, None)
