"""Every config of configs/ loads, and its model, optimizer and losses fit together."""

import importlib.util

import jax
import pytest

from clipjax.config import load_config
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.evals import KINDS
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from tests.step_golden import ROOT

CONFIGS = ROOT / "configs"
SIGLIP = "clip.py:ViT-B-16-SigLIP"
ARGUMENTS = [SIGLIP, "drawings_lit.py:text"]


def arms():
    """Arguments of cloc_scenes."""
    spec = importlib.util.spec_from_file_location("cloc_scenes", CONFIGS / "cloc_scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [f"cloc_scenes.py:{arm}" for arm in module.ARMS]


@pytest.mark.parametrize(
    "name", [*sorted(f.name for f in CONFIGS.glob("*.py")), *ARGUMENTS, *arms()]
)
def test_parts_fit_together(name):
    config = load_config(f"{CONFIGS}/{name}", base_config())
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    assert prepare(config, mesh).flops_per_sample > 0
    assert all(entry["kind"] in KINDS for entry in config.evals.values())


def test_an_arm_that_there_is_not():
    with pytest.raises(UserError, match="there is no arm 'glip'"):
        load_config(f"{CONFIGS}/cloc_scenes.py:glip", base_config())
