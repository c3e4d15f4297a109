"""Whole steps, the configs and the recipe. Meshes, micro-batches and resume: tests/experiments/test_all.py."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax import rules
from clipjax.config import load_config
from clipjax.convert.pretrained import copies
from clipjax.data.stream import Stream
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.losses import KINDS
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.prepare import prepare
from clipjax.recipe import load_recipe
from clipjax.registry import lookup
from clipjax.step import init_state
from experiments.clip_refine.arms import ARMS, arms, losses

FOLDER = Path(__file__).parents[3] / "experiments" / "clip_refine"


def config(name):
    return load_config(f"{FOLDER}/configs/{name}", base_config())


def prepared(name):
    return prepare(config(name), make_mesh({"data": 1}, jax.devices()[:1]))


@functools.cache
def batch():
    made = config("tiny.py")
    stream = Stream(made)
    samples = [stream[i] for i in range(16)]
    fields = prepared("tiny.py").batch
    return {name: np.stack([s[name] for s in samples]) for name in fields}


@functools.cache
def steps(arm):
    """Parameters by path and metrics, at the start and after each of two steps on one batch."""
    made = prepared(f"tiny.py:{arm}")
    state = init_state(made.model, made.config, made.optimizer, made.mesh)
    found = [({p: np.asarray(x) for p, x in rules.paths(state.params).items()}, {})]
    with jax.set_mesh(made.mesh):
        placed = {k: jax.device_put(x, batch_sharding(made.mesh)) for k, x in batch().items()}
        for _ in range(2):
            state, metrics = made.step(state, placed)
            params = {p: np.asarray(x) for p, x in rules.paths(state.params).items()}
            found.append((params, jax.device_get(metrics)))
    return found


def test_1_a_student_that_is_its_teacher_has_nothing_to_learn():
    _, first = steps("self")[1]
    _, taught = steps("mixed")[1]
    assert abs(first["distill/loss"]) < 2e-6 * first["distill/target_entropy"]
    assert first["grad_norm"] < 1e-5 * taught["grad_norm"]


def test_5_the_teacher_stays_and_the_vectors_change():
    (start, _), (_, first), (after, second) = steps("full")
    teacher = [path for path in start if path.startswith("teacher/")]
    students = {path for path in start if path not in teacher}
    assert {path.removeprefix("teacher/") for path in teacher} == students
    for path in teacher:
        np.testing.assert_array_equal(after[path], start[path])
        np.testing.assert_array_equal(start[path], start[path.removeprefix("teacher/")])
    moved = {path for path in students if (after[path] != start[path]).any()}
    assert students - moved == {"logit_scale"}
    assert abs(first["align/loss"] - second["align/loss"]) > 1e-3
    optimizer = prepared("tiny.py").state.optimizer
    assert not [p for p, _ in jax.tree_util.tree_leaves_with_path(optimizer) if "teacher" in str(p)]


def test_the_teacher_is_a_copy_of_all():
    params = prepared("tiny.py").state.params
    assert copies(config("tiny.py").init, params)["teacher/logit_scale"] == "logit_scale"


@pytest.mark.parametrize("arm", ARMS)
def test_arms(arm):
    small = prepared(f"small.py:{arm}")
    assert set(small.config.losses) == set(arms()[arm])
    assert not small.remarks


@pytest.mark.parametrize(("arm", "alpha"), [("self", 0.0), ("mixed", 0.5)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_hycd_is_of_raw_products(arm, alpha, scale):
    """Eq. by eq. in float64: KL of rows and of columns from alpha one-hot + (1 - alpha) teacher's softmax."""
    rng = np.random.default_rng(0)
    raw = {f"{side}_embedding_raw": rng.normal(size=(8, 5)) for side in ("image", "text")}
    raw |= {f"teacher_{name}": rng.normal(size=(8, 5)) for name in list(raw)}
    outputs = {name: jnp.float32(x) for name, x in raw.items()} | {"logit_scale": jnp.float32(100)}
    settings = dict(losses(arm, scale)["distill"])
    loss = lookup(settings.pop("kind"), KINDS, "loss")
    found, _ = loss(outputs, {}, **settings)
    student, teacher = (
        scale * raw[f"{who}image_embedding_raw"] @ raw[f"{who}text_embedding_raw"].T
        for who in ("", "teacher_")
    )
    wanted = 0.0
    for s, t in ((student, teacher), (student.T, teacher.T)):
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (s, t))
        q = alpha * np.eye(8) + (1 - alpha) * q
        wanted += np.where(q > 0, q * np.log(q / p), 0).sum(1).mean() / 2
    assert found == pytest.approx(wanted, rel=1e-5)


def test_paper():
    made = prepared("paper.py")
    assert made.config.total_samples == 228 * 512
    assert made.batch["image"].shape == (512, 224, 224, 3)
    assert made.batch["text"].shape == (512, 77)
    optim = made.config.optim
    assert (optim.name, optim.lr, optim.schedule, optim.weight_decay) == (
        "adamw",
        1e-6,
        "constant",
        0.1,
    )
    assert optim.decay_rules == ((".*", 1.0),)
    assert made.config.data.features.image.augment.crop == "fit"
    assert made.config.model.dtype == made.config.model.teacher.dtype == "float32"
    assert optim.freeze[0] == (r"teacher/.*", True)
    assert {float(made.rate(step)) for step in (0, 100, 227)} == {np.float32(1e-6)}
    with pytest.raises(UserError, match="there is no arm 'ful'; there are contrastive, self"):
        config("paper.py:ful")


def test_recipe():
    for arg, runs in (("", 11), (":full", 15)):
        recipe = load_recipe(f"{FOLDER}/recipe.py{arg}")
        arms = [n for n, s in recipe.steps.items() if s.kind == "train" and "start" not in n]
        assert len(arms) == runs
        assert recipe.needs["full-1"] == ("start-1", "scenes")
