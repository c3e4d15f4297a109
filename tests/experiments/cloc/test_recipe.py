"""The recipe's runs, and that those of one budget get the same FLOPs."""

from pathlib import Path

import jax
import pytest

from clipjax.config import import_file, load_config
from clipjax.defaults import base_config
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from clipjax.recipe import load_recipe
from clipjax.recipe.marks import definition

ROOT = Path(__file__).parents[3]
FILE = ROOT / "experiments" / "cloc" / "recipe.py"


def test_all_runs_are_there_and_load():
    recipe = load_recipe(str(FILE))
    assert len([s for s in recipe.steps.values() if s.kind == "train"]) == 20
    assert set(recipe.needs["half-tuned-cloc"]) == {"clip-0", "scenes"}
    found = definition(recipe, recipe.steps["long-clip"])["config"]
    assert found["total_samples"] == round(120_000 * 1.73857)
    assert found["data.sources.scenes.files"] == "{scenes}/*.array_record"
    short = load_recipe(f"{FILE}:6000")
    assert definition(short, short.steps["cloc-1"])["config"]["total_samples"] == 6000


def cost(arm):
    config = load_config(f"{FILE.parent}/configs/scenes.py:{arm}", base_config())
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    return prepare(config, mesh, 20_000).flops_per_sample


@pytest.mark.slow
def test_runs_of_a_budget_get_the_same_flops():
    samples = import_file(FILE).SAMPLES
    whole = cost("cloc")
    for arm in ("roi_align", "clip", "m1"):
        assert samples[arm] == pytest.approx(whole / cost(arm), rel=1e-3)
