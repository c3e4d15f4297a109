"""The recipe: its arms, seeds, equal budgets, and the stage."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from clipjax.errors import UserError
from clipjax.recipe import load_recipe
from experiments.improved_baselines.stages import blend

FILE = Path(__file__).parents[3] / "experiments" / "improved_baselines" / "recipe.py"


@pytest.mark.parametrize(("arg", "runs"), [("", 2 * 3 + 8 + 1), (":full", 10 * 3 + 2)])
def test_steps(arg, runs):
    steps = list(load_recipe(f"{FILE}{arg}").steps.values())
    trained = [step for step in steps if step.kind == "train"]
    assert len(trained) == runs
    assert steps[-1].kind == "table"
    budgets = {step.name: step.settings["overrides"].get("total_samples") for step in trained}
    assert budgets["clip-a-third"] == 140_000 // 3
    assert budgets.get("rocket-threefold") == (140_000 if arg else None)
    assert budgets["clip-0"] is None


def test_blend_changes_the_config_alone():
    params, config = blend({"a": 1}, ConfigDict({"model": {}}), share=0.5)
    assert params == {"a": 1}
    assert config.model.blend == 0.5
    with pytest.raises(UserError, match="from 0 to 1, not 2"):
        blend({}, ConfigDict({"model": {}}), share=2)
