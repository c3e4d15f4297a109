"""Every config of configs/ and of the experiments loads, and its model, optimizer and losses fit together."""

import jax
import pytest

from clipjax.config import import_file, load_config
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.evals import check_evaluators
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from tests.step_golden import ROOT

SCENES = "experiments/cloc/configs/scenes.py"
FILES = [*ROOT.glob("configs/*.py"), *ROOT.glob("experiments/*/configs/*.py")]
ARGUMENTS = ["configs/clip.py:ViT-B-16-SigLIP", "configs/drawings_lit.py:text"]
ARMS = [f"{SCENES}:{arm}" for arm in import_file(ROOT / SCENES).ARMS]


@pytest.mark.parametrize(
    "name", [*sorted(str(f.relative_to(ROOT)) for f in FILES), *ARGUMENTS, *ARMS]
)
def test_parts_fit_together(name):
    config = load_config(f"{ROOT / name}", base_config())
    if not config.data.sources:  # it evaluates only
        assert config.evals
        check_evaluators(config.evals)
        return
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    assert prepare(config, mesh).flops_per_sample > 0


def test_an_arm_that_there_is_not():
    with pytest.raises(UserError, match="there is no arm 'glip'"):
        load_config(f"{ROOT / SCENES}:glip", base_config())
