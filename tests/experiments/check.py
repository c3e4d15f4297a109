"""The shared check of an experiment, asked of its smallest config, experiments/SLUG/configs/tiny.py.

    def test_mine(tmp_path):
        check_experiment("experiments/mine", tmp_path)

The config must have at least three steps and a batch that 16 divides. Of it: it traces, trains, gives the same numbers
on 1 and 8 devices, two meshes and in micro-batches (or refuses them by name), goes on bit for bit, is loaded, shown and
evaluated; and the README has its sections.
"""

import functools
import re
import shutil
from pathlib import Path

import jax
import numpy as np

import clipjax
from clipjax.cli import main
from clipjax.config import load_config
from clipjax.coupling import check_apart
from clipjax.data.pipeline import batches
from clipjax.data.stream import Stream
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.prepare import prepare
from clipjax.step import init_state
from tests.tiny_run import assert_same_arrays, saved, trajectory

ROOT = Path(__file__).parents[2]
STEPS = 3
MESHES = ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2})
SECTIONS = ("Claim", "What we run", "Results", "Direction", "Choices")
# Of float32 sums in another order, over three steps of plain gradient descent.
TOLERANCE = 2e-4


def experiments() -> list[str]:
    """Every folder of experiments/."""
    return sorted(str(f.parent.relative_to(ROOT)) for f in ROOT.glob("experiments/*/README.md"))


def check_experiment(folder: str, workdir: Path) -> None:
    """All of it, for callers outside of this repository's tests."""
    check_sections(folder)
    check_meshes(folder)
    check_micro_batches(folder)
    check_run(folder, workdir)


def check_sections(folder: str) -> None:
    """The README says what is claimed, run and found."""
    text = (ROOT / folder / "README.md").read_text()
    found = re.findall(r"^##+ (.*)$", text, flags=re.M)
    missing = [s for s in SECTIONS if not any(s.lower() in title.lower() for title in found)]
    assert not missing, f"{folder}/README.md has no section {missing}"


def check_meshes(folder: str) -> None:
    """The same loss and the same gradients on any mesh."""
    want = losses(folder, (("data", 1),))
    for sizes in MESHES:
        np.testing.assert_allclose(losses(folder, tuple(sizes.items())), want, rtol=TOLERANCE)


def check_micro_batches(folder: str) -> None:
    """The same with the gradient cache; or it is refused, and the sentence says so."""
    try:
        found = losses(folder, (("data", 2),), chunks=2)
    except UserError as error:
        if "grad_cache" in str(error):
            return
        raise
    np.testing.assert_allclose(found, losses(folder, (("data", 1),)), rtol=TOLERANCE)


def check_run(folder: str, workdir: Path) -> None:
    """Trains, goes on from its middle bit for bit, and the result is loaded, shown and evaluated."""
    config = ROOT / folder / "configs" / "tiny.py"
    whole, resumed = workdir / "whole", workdir / "resumed"
    every = ["--config.checkpoint.every=1 steps", "--config.checkpoint.keep=None"]
    command = ["train", f"--config={config}", "--config.log.every=1 steps", *every]
    assert main([*command, f"--workdir={whole}"]) == 0
    found = sorted(int(p.name) for p in (whole / "checkpoints").iterdir())
    assert len(found) >= STEPS
    shutil.copytree(whole, resumed)
    for samples in found[1:]:
        shutil.rmtree(resumed / "checkpoints" / str(samples))
    assert main([*command, f"--workdir={resumed}"]) == 0
    assert trajectory(resumed) == trajectory(whole)
    assert_same_arrays(saved(resumed, found[-1]), saved(whole, found[-1]))

    assert clipjax.load(str(whole)).params
    assert main(["show", f"--config={config}"]) == 0
    if load_config(str(config), base_config()).evals:
        assert main(["eval", f"--checkpoint={whole}"]) == 0


@functools.cache
def losses(folder: str, sizes: tuple[tuple[str, int], ...], chunks: int = 1) -> np.ndarray:
    """Loss and gradient norm of three steps, float64 [3, 2], by plain gradient descent, which hides no difference."""
    overrides = [f"grad_cache={chunks}", "optim.name=sgd", "optim.settings={}", "optim.lr=0.01"]
    overrides += ["optim.schedule=constant", "optim.warmup=0", "optim.lr_multipliers=(('.*',1.0),)"]
    config = load_config(str(ROOT / folder / "configs" / "tiny.py"), base_config(), overrides)
    count = int(np.prod([size for _, size in sizes]))
    mesh = make_mesh(dict(sizes), jax.devices()[:count])
    stream = Stream(config)
    prepared = prepare(config, mesh, stream.epoch)
    size = prepared.config.batch_size
    state = init_state(prepared.model, prepared.config, prepared.optimizer, mesh)
    check_apart(prepared, state.params)
    found = []
    with jax.set_mesh(mesh):
        for batch in batches(stream, size, 0, STEPS * size, threads=1):
            fields = {name: batch[name] for name in prepared.batch}
            placed = jax.device_put(fields, batch_sharding(mesh))
            state, metrics = prepared.step(state, placed)
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found)
