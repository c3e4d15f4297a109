"""MaPLe's configs, schedule and evaluator. Meshes, micro-batches and resume: tests/experiments/test_all.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax import rules
from clipjax.config import load_config
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from clipjax.step import init_state
from experiments.maple.evals import BaseToNovel, harmonic_mean
from experiments.maple.schedules import cosine_by_epoch

FOLDER = Path(__file__).parents[3] / "experiments" / "maple"


def test_2_parameters():
    config = load_config(f"{FOLDER}/configs/paper.py", base_config())
    assert len(config.model.classes) == 5
    prepared = prepare(config, make_mesh({"data": 1}, jax.devices()[:1]))
    flat = rules.paths(prepared.state.params)
    count = sum(x.size for path, x in flat.items() if path.startswith("prompts/"))
    assert count == 9 * (2 * 512) + 9 * (512 * 768 + 768) == 3_555_072


def test_3_nothing_else_trains():
    config = load_config(f"{FOLDER}/configs/tiny.py", base_config())
    made = prepare(config, make_mesh({"data": 1}, jax.devices()[:1]))
    state = init_state(made.model, made.config, made.optimizer, made.mesh)
    start = {path: np.asarray(x) for path, x in rules.paths(state.params).items()}
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, made.batch["image"].shape, np.uint8),
        "labels": rng.integers(0, 92, made.batch["labels"].shape, np.int32),
        "sample_seed": np.arange(16, dtype=np.uint32),
    }
    with jax.set_mesh(made.mesh):
        state, _ = made.step(state, batch)
    moved = {p for p, x in rules.paths(state.params).items() if (np.asarray(x) != start[p]).any()}
    assert moved == {path for path in start if path.startswith("prompts/")}


def test_8_harmonic_mean():
    assert harmonic_mean(0.8228, 0.7514) == pytest.approx(0.7855, abs=1e-4)  # the paper's table
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.5, 0.5) == 0.5


def test_the_rate_changes_from_epoch_to_epoch():
    rate = cosine_by_epoch(peak=0.0035, total=500, warmup=100, batch_size=4, final=0.0)
    found = [float(rate(jnp.int32(25 * epoch + step))) for epoch in range(5) for step in (0, 24)]
    wanted = [1e-5] + [0.0035 * (1 + np.cos(np.pi * e / 5)) / 2 for e in range(4)]
    np.testing.assert_allclose(found, np.repeat(wanted, 2), rtol=1e-5)


class Colours:
    """An encoder that says a colour's name."""

    def images(self, params, images):
        return np.eye(4, dtype=np.float32)[[int(x[0, 0, 0]) for x in images]]

    def texts(self, params, texts):
        names = ["a red", "a green", "a blue", "a grey"]
        return np.eye(4, dtype=np.float32)[[names.index(text) for text in texts]]


def test_each_half_has_its_own_classes():
    def records(*pairs):
        return [{"image": np.full((2, 2, 3), x, np.uint8), "label": y} for x, y in pairs]

    sources = {
        "base": records((0, "red"), (1, "red"), (1, "green"), (0, "red")),
        "novel": records((2, "blue"), (3, "blue")),
    }
    classes = {"base": ("red", "green"), "novel": ("blue", "grey")}
    evaluator = BaseToNovel("e", Colours(), sources, classes=classes, template="a {}")
    assert evaluator.run(None) == {"base": 0.75, "novel": 0.5, "hm": 0.6}
    assert evaluator.protocol["chance"] == {"base": 0.5, "novel": 0.5, "hm": 0.5}
    json.dumps(evaluator.protocol)
    with pytest.raises(UserError, match="must be 'base' and 'novel', not 'base'"):
        BaseToNovel("e", Colours(), {"base": sources["base"]}, classes=classes)


@pytest.mark.parametrize("arg", ["base_to_novel,dtd", "cross_dataset"])
def test_the_papers_config_traces(arg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, name in (("dtd", "base"), ("imagenet", "classes")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.json").write_text(
            json.dumps([f"class {i}" for i in range(24)])
        )
    made = prepare(
        load_config(f"{FOLDER}/configs/paper.py:{arg}", base_config()),
        make_mesh({"data": 1}, jax.devices()[:1]),
    )
    depth = made.config.model.prompt_depth
    assert made.state.params["prompts"]["text"].shape == (depth, 2, 512)
    assert made.batch["image"].shape == (4, 224, 224, 3)
    config, optim, augment = made.config, made.config.optim, made.config.data.features.image.augment
    epochs, peak, layers = (5, 0.0035, 9) if arg.startswith("base") else (2, 0.0026, 3)
    epoch = config.optim.warmup
    assert (depth, config.total_samples) == (layers, epochs * epoch)
    assert (optim.name, dict(optim.settings)) == ("sgd", {"momentum": 0.9, "l2": 5e-4})
    assert (optim.weight_decay, optim.clip_norm, optim.ema) == (0.0, None, 0.0)
    assert (augment.crop, augment.crop_scale, augment.flip) == ("random", (0.08, 1.0), 0.5)
    rates = [float(made.rate(jnp.int32(e * epoch // 4))) for e in range(epochs)]
    wanted = [1e-5] + [peak * (1 + np.cos(np.pi * e / epochs)) / 2 for e in range(epochs - 1)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)
