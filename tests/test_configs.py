"""Every config of configs/ and of the experiments loads, and its model, optimizer and losses fit together."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from clipjax.batch import example_batch
from clipjax.config import import_file, load_config
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.evals import KINDS
from clipjax.mesh import make_mesh
from clipjax.models import boxed_params
from clipjax.step import make_losses, make_parts
from clipjax.workdir import resolve
from tests.step_golden import ROOT

SCENES = "experiments/cloc/configs/scenes.py"
FILES = [*ROOT.glob("configs/*.py"), *ROOT.glob("experiments/*/configs/*.py")]
ARGUMENTS = ["configs/clip.py:ViT-B-16-SigLIP", "configs/drawings_lit.py:text"]
ARMS = [f"{SCENES}:{arm}" for arm in import_file(ROOT / SCENES).ARMS]


@pytest.mark.parametrize(
    "name", [*sorted(str(f.relative_to(ROOT)) for f in FILES), *ARGUMENTS, *ARMS]
)
def test_parts_fit_together(name):
    config = resolve(load_config(f"{ROOT / name}", base_config()), 1_000_000)
    model, _, _ = make_parts(config)
    losses = make_losses(config.losses, make_mesh({"data": 1}, jax.devices()[:1]))
    params = nn.unbox(boxed_params(model, example_batch(config)))

    def total(params, batch):
        outputs = model.apply({"params": params}, batch, train=True)
        return losses(outputs, batch, jnp.float32(0))[0]

    value = jax.eval_shape(total, params, example_batch(config, 8))
    assert value.shape == ()
    assert all(entry["kind"] in KINDS for entry in config.evals.values())


def test_an_arm_that_there_is_not():
    with pytest.raises(UserError, match="there is no arm 'glip'"):
        load_config(f"{ROOT / SCENES}:glip", base_config())
