"""Every folder of experiments/ keeps what the core promises (tests/experiments/check.py)."""

import pytest

from clipjax.errors import UserError
from clipjax.recipe import load_recipe
from tests.experiments import check


@pytest.mark.parametrize("folder", check.experiments())
class TestExperiment:
    def test_readme(self, folder):
        check.check_sections(folder)

    @pytest.mark.slow
    def test_meshes(self, folder):
        check.check_meshes(folder)

    @pytest.mark.slow
    def test_micro_batches(self, folder):
        check.check_micro_batches(folder)

    @pytest.mark.slow
    def test_run(self, folder, tmp_path):
        check.check_run(folder, tmp_path)


RECIPES = sorted(str(f.relative_to(check.ROOT)) for f in check.ROOT.glob("experiments/*/recipe.py"))


@pytest.mark.parametrize("file", RECIPES)
def test_a_recipe_refuses_what_it_has_not(file):
    assert load_recipe(str(check.ROOT / file)).steps
    with pytest.raises(UserError):
        load_recipe(f"{check.ROOT / file}:ful")
