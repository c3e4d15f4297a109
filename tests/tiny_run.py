"""Runs of tests/configs/tiny.py, in this process or in one of their own, and what they left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from clipjax.config import load_config
from clipjax.defaults import base_config

CONFIG = Path(__file__).parent / "configs" / "tiny.py"
SPEEDS = ("samples_per_second", "mfu", "goodput", "time/")


def tiny_config(*overrides, steps=20):
    """The config, loaded as the command line does."""
    return load_config(f"{CONFIG}:{steps}", base_config(), overrides)


def start(workdir, *overrides, steps=20, devices=1, output=subprocess.DEVNULL, config=CONFIG):
    """`clipjax train` in a process of its own."""
    command = [sys.executable, "-m", "clipjax.cli", "train", f"--config={config}:{steps}"]
    command += [f"--workdir={workdir}", *(f"--config.{o}" for o in overrides)]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": root}
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def trajectory(workdir):
    """All lines of metrics.jsonl without the speeds, which no two runs share."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(SPEEDS)} for line in lines]


def sample_ids(workdir):
    """The text of the file of sample ids."""
    return (workdir / "sample_ids" / "0.jsonl").read_text()


def losses(workdir):
    """The loss at each step."""
    return [line["loss"] for line in trajectory(workdir) if "loss" in line]


def saved(workdir, samples):
    """Everything numeric in one checkpoint: path -> array."""
    found = {}
    for item in ("params", "train"):
        folder = workdir / "checkpoints" / str(samples) / item
        with ocp.PyTreeCheckpointer() as reader:
            like = reader.metadata(folder).item_metadata.tree
            # As NumPy, since the devices of the run need not be here.
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
            tree = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how))
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {item + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def assert_same_arrays(a, b):
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name
