"""Whole steps and runs: any mesh, any chunks, resume; the arms and their recipe."""

import functools
import inspect
import itertools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import clipjax
from clipjax import rules
from clipjax.cli import main
from clipjax.config import load_config
from clipjax.data.stream import Stream
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.prepare import prepare
from clipjax.recipe import load_recipe
from clipjax.step import init_state
from experiments.alip.losses import MEANS, gated_contrastive
from tests.tiny_run import assert_same_arrays, saved, trajectory

FOLDER = Path(__file__).parents[3] / "experiments" / "alip"
TINY = FOLDER / "configs" / "tiny.py"


def config(name, *overrides):
    return load_config(f"{FOLDER}/configs/{name}", base_config(), overrides)


@functools.cache
def batch():
    stream = Stream(config("tiny.py"))
    samples = [stream[i] for i in range(16)]
    fields = prepare(config("tiny.py"), make_mesh({"data": 1}, jax.devices()[:1])).batch
    return {name: np.stack([s[name] for s in samples]) for name in fields}


@functools.cache
def steps(chunks=1, **sizes):
    """Parameters by path and metrics, at the start and after each of three steps on one batch."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    made = prepare(config("tiny.py", f"grad_cache={chunks}", "optim.ema=0.0"), mesh)
    state = init_state(made.model, made.config, made.optimizer, mesh)
    found = [({p: np.asarray(x) for p, x in rules.paths(state.params).items()}, {})]
    with jax.set_mesh(mesh):
        placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in batch().items()}
        for _ in range(3):
            state, metrics = made.step(state, placed)
            params = {p: np.asarray(x) for p, x in rules.paths(state.params).items()}
            found.append((params, jax.device_get(metrics)))
    return found


def test_6_each_step_moves_the_means_a_hundredth_of_the_way():
    assert batch()["text"].shape == (16, 2, 12)
    for (before, _), (after, metrics) in itertools.pairwise(steps(data=1)):
        for name in MEANS:
            assert after[name] == metrics[f"gated/{name}"]
            mean = (after[name] - 0.99 * before[name]) / 0.01
            assert -1 <= mean <= 1
            assert after[name] != before[name]
    assert all(steps(data=1)[0][0][name] == 1 for name in MEANS)


@pytest.mark.slow
def test_means_and_weights_do_not_depend_on_mesh_or_chunks():
    pairs = zip(steps(data=1)[1:], steps(2, data=2, fsdp=2, tensor=2)[1:], strict=True)
    for (want, want_metrics), (got, metrics) in pairs:
        for name in MEANS:
            np.testing.assert_allclose(got[name], want[name], rtol=2e-6)
        for name in ("loss", "gated/raw/weight", "gated/synthetic/weight"):
            assert metrics[name] == pytest.approx(want_metrics[name], rel=1e-4), name


@pytest.mark.slow
def test_7_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    command = ["train", f"--config={TINY}", "--config.evals={}", "--config.log.every=1 steps"]
    assert main([*command, f"--workdir={whole}"]) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "64")
    assert main([*command, f"--workdir={resumed}"]) == 0
    assert trajectory(resumed) == trajectory(whole)
    assert_same_arrays(saved(resumed, 64), saved(whole, 64))
    middle, end = saved(whole, 32), saved(whole, 64)
    for name in MEANS:
        assert middle[f"params['{name}']"] != end[f"params['{name}']"] != 1
    model = clipjax.load(str(whole))
    assert model.encode_text(["a ball"]).shape == (1, 16)


def test_arms_see_the_same_images_and_raw_texts():
    entry = "data.sources.scenes.scenes.length=60"
    raw, both = (Stream(config(f"small.py:{arm}_30", entry)) for arm in ("raw", "all"))
    for place in (0, 7):
        one, two = raw[place], both[place]
        assert one["sample_id"] == two["sample_id"]
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["text"], two["text"][0])


@pytest.mark.parametrize("arm", ["raw_0", "ungated_30", "sample_30"])
def test_arms_are_what_they_say(arm):
    made = prepare(config(f"small.py:{arm}"), make_mesh({"data": 1}, jax.devices()[:1]))
    assert made.batch["text"].shape == ((64, 16) if arm == "raw_0" else (64, 2, 16))
    assert (MEANS[0] in made.state.params) == (arm != "raw_0")
    assert not made.remarks


@pytest.mark.parametrize(
    ("arm", "gates"),
    [("ungated_0", (0.0, 0.0, 0.0)), ("sample_30", (2.0, 0.0, 0.0)), ("all_30", (2.0, 2.0, 2.0))],
)
def test_gates_of_the_arms(arm, gates):
    """Which of Ws, Wt and Wc acts; what an arm does not set is the loss's default."""
    section = config(f"small.py:{arm}").losses["gated"]
    defaults = inspect.signature(gated_contrastive).parameters
    names = ("sample_gate", "raw_gate", "synthetic_gate")
    assert tuple(section.get(name, defaults[name].default) for name in names) == gates


def test_arms_start_from_the_same_weights():
    def start(arm):
        made = prepare(config(f"small.py:{arm}"), make_mesh({"data": 1}, jax.devices()[:1]))
        state = init_state(made.model, made.config, made.optimizer, made.mesh)
        return {k: np.asarray(x) for k, x in rules.paths(state.params).items() if k not in MEANS}

    raw, gated = start("raw_30"), start("all_30")
    assert raw.keys() == gated.keys()
    for path, x in raw.items():
        np.testing.assert_array_equal(gated[path], x, err_msg=path)


def test_an_arm_that_there_is_not():
    for arm in ("gated_30", "all", "all_40"):
        with pytest.raises(UserError, match="there is no arm"):
            config(f"small.py:{arm}")


def test_the_learning_rate_of_the_paper():
    made = config("paper.py")
    schedule = prepare(made, make_mesh({"data": 1}, jax.devices()[:1])).rate
    last = made.total_samples // made.batch_size
    for share, want in ((0.0, 1e-3 / 25), (0.1, 1e-3), (0.55, 0.5e-3), (1.0, 1e-3 / 25e4)):
        assert schedule(round(share * last)) == pytest.approx(want, rel=1e-3, abs=1e-9)


def test_the_recipe():
    recipe = load_recipe(f"{FOLDER}/recipe.py")
    runs = [s for s in recipe.steps.values() if s.kind == "train"]
    assert len(runs) == 16
    assert recipe.needs["all_30-2"] == ("scenes",)
    full = load_recipe(f"{FOLDER}/recipe.py:full")
    assert len([s for s in full.steps.values() if s.kind == "train"]) == 18
