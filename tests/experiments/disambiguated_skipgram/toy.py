"""Runs of a few hundred steps on two topics that share a pseudo-word, without the pipeline."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from clipjax import rules
from clipjax.config import import_file
from clipjax.encode.encoder import Encoder
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from clipjax.step import init_state
from experiments.disambiguated_skipgram.windows import Planted

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "experiments" / "disambiguated_skipgram" / "configs"
tiny = import_file(CONFIGS / "tiny.py")


def config(stage, steps, **changes):
    """configs/tiny.py for so many steps of `stage`; changes by dotted path."""
    made = tiny.get_config(stage)
    epoch = steps // (1 if stage == "pretrain" else 3)
    made.total_samples = made.batch_size * steps
    made.optim.settings.steps = steps
    if stage == "train":
        made.losses.skipgram.temperature = ((0, 1.0), (epoch * made.batch_size, 0.5))
    made = ConfigDict(made.to_dict(), type_safe=False)
    made.update_from_flattened_dict(changes)
    return made


def batches(source, size, steps, seed=0):
    """Random records, as arrays."""
    records = [source[i] for i in range(len(source))]
    fields = {k: np.stack([r[k] for r in records]) for k in records[0]}
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(len(records), size=size)
        seeds = rng.integers(2**32, size=size, dtype=np.uint32)
        yield {k: x[rows] for k, x in fields.items()} | {"sample_seed": seeds}


def initial(config):
    """Fresh parameters as NumPy arrays."""
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    made = prepare(config, mesh)
    state = init_state(made.model, made.config, made.optimizer, mesh)
    return jax.tree.map(np.array, dict(state.params))


def run(config, params=None, source=None, seed=0):
    """(parameters as NumPy arrays, metrics of the last step) after the steps of a config on one device."""
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    made = prepare(config, mesh)
    given = None if params is None else {k: jnp.asarray(x) for k, x in rules.paths(params).items()}
    state = init_state(made.model, made.config, made.optimizer, mesh, given)
    source = source or Planted(grouped=True)
    steps = made.config.total_samples // made.config.batch_size
    metrics = {}
    with jax.set_mesh(mesh):
        for batch in batches(source, made.config.batch_size, steps, seed):
            state, metrics = made.step(state, batch)
    return jax.tree.map(np.array, dict(state.params)), {k: float(x) for k, x in metrics.items()}


def encoder(config):
    """What an evaluator is given."""
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    return Encoder(prepare(config, mesh).model, config, None, mesh)
