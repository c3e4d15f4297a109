"""What the train step of a named config becomes on eight devices, as text: how arrays are split, and what travels.

tools/make_step_goldens.py writes these texts to tests/golden/, and tests/test_step_goldens.py compares. A text is made
of blocks:

  settings, parameters, state, batch    what this library decides: the same with every version of JAX
  program                               which program was compiled: its FLOPs, arguments and donated arguments
  collectives, JAX x.y                  what XLA made of it, one block for each minor version in constraints.txt

XLA promises nothing about collectives, so no version is held to another's: JAX 0.10 and 0.12 part in how many
scalars share a reduction. What any version must do is in the tests, from theory. A
version without a block fails, with the command that adds it: a new XLA is to be looked at, not let through.

On a CPU XLA leaves the FSDP gradient as an all-reduce over `fsdp` of which each device keeps its slice; it has no pass
that makes a reduce-scatter of the two. The computations are in float32, as "auto" means on CPUs.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax

from clipjax import optim, rules
from clipjax.config import load_config
from clipjax.cost import hlo
from clipjax.defaults import base_config
from clipjax.models import model_parts
from clipjax.plan import topology
from clipjax.plan.compile import Job, compile_step, make_job
from clipjax.plan.plan import held

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
COMMAND = "python tools/make_step_goldens.py"
DEVICES = "cpu:8"
VERSION = ".".join(jax.__version__.split(".")[:2])
COLLECTIVES = f"collectives, JAX {VERSION}"

Blocks = dict[str, list[str]]


class Case(NamedTuple):
    """A file of configs/ with its argument, and overrides as they stand on the command line."""

    config: str
    overrides: tuple[str, ...]


# A sixteenth of the named models' widths and a sixth of their depth; the vocabulary and the images are small too.
_SMALL = (
    "batch_size=64",
    *("model.image.size=64", "model.image.width=48", "model.image.depth=2", "model.image.heads=6"),
    *("model.text.length=8", "model.text.depth=2", "model.text.vocab_size=256"),
)
_CLIP = (
    *_SMALL,
    *("model.text.width=32", "model.text.heads=4", "model.text.end_token=255"),
    "model.embed_dim=32",
)
_SIGLIP = (*_SMALL, "model.text.width=48", "model.text.heads=6", "model.embed_dim=48")

CASES = {
    "clip_data8": Case(
        "configs/clip.py:ViT-B-16", (*_CLIP, "losses.contrastive.layout=gather", "mesh.data=8")
    ),
    "clip_fsdp4": Case(
        "configs/clip.py:ViT-B-16",
        (
            *_CLIP,
            "losses.contrastive.layout=ring",
            *("mesh.data=2", "mesh.fsdp=4"),
            *("model.image.remat=full", "model.text.remat=full"),
            "optim.ema=0.999",
        ),
    ),
    "siglip_tensor2": Case(
        "configs/clip.py:ViT-B-16-SigLIP",
        (
            *_SIGLIP,
            "losses.contrastive.layout=gather",
            *("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"),
            "grad_cache=2",
        ),
    ),
    "cloc_tensor2": Case(
        "experiments/cloc/configs/b16.py",
        (
            *_CLIP,
            "data.features.regions.text_length=6",
            "losses.regions.layout=ring",
            *("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"),
        ),
    ),
}


def make(name: str) -> Job:
    """The case's job on eight CPU devices; nothing is allocated."""
    config, overrides = CASES[name]
    loaded = load_config(f"{ROOT / config}", base_config(), overrides)
    return make_job(loaded, topology.find(DEVICES))


def resolved(name: str, job: Job) -> Blocks:
    """The blocks that need no compiler."""
    params = rules.paths(job.state.params)
    return {
        "settings": _settings(name, job),
        "parameters": _table([(path, *_array(x)) for path, x in params.items()]),
        "state": _state(job),
        "batch": _table([(field, *_array(x)) for field, x in job.batch.items()]),
    }


def compiled(job: Job) -> Blocks:
    """The blocks of the compiled step."""
    program = compile_step(job)
    text = program.text
    module, devices = re.search(r"HloModule (\w+), .*num_partitions=(\d+)", text).groups()
    needed = job.flops_per_sample * job.config.batch_size / int(devices)
    rows = [
        ("module", module),
        ("devices", devices),
        ("FLOPs needed", f"{needed:,.0f} of each device's matrix products"),
        ("FLOPs compiled", f"{hlo.matmul_flops(text):,}"),
        ("arguments", f"{program.arguments:,} bytes of each device"),
        ("donated", f"{program.aliased:,} bytes"),
    ]
    return {"program": _table(rows), COLLECTIVES: _collectives(text, job)}


def join(blocks: Blocks) -> str:
    """The text of blocks."""
    return "\n".join("\n".join([f"== {title}", *lines, ""]) for title, lines in blocks.items())


def split(text: str) -> Blocks:
    """The inverse of `join`; what stands before the first block is left out."""
    blocks: Blocks = {}
    for part in f"\n{text}".split("\n== ")[1:]:
        title, *lines = part.splitlines()
        blocks[title] = [line for line in lines if line]
    return blocks


def read(name: str) -> Blocks:
    """The blocks of a golden; none if there is no such file."""
    file = path(name)
    return split(file.read_text(encoding="utf-8")) if file.exists() else {}


def path(name: str) -> Path:
    """Where a golden is."""
    return GOLDEN / f"step_{name}.txt"


def _settings(name: str, job: Job) -> list[str]:
    config, state = job.config, job.state
    trained, frozen, _ = optim.split(state.params, config.optim.freeze)
    each = lambda entry: " ".join(f"{k}={entry[k]}" for k in sorted(entry))  # noqa: E731
    numbers = sum(x.size for x in trained.values())
    overrides = [("overrides", text) for text in CASES[name].overrides]
    rows = [
        ("config", CASES[name].config),
        *overrides[:1],
        *(("", text) for _, text in overrides[1:]),
        ("mesh", " ".join(f"{axis}={size}" for axis, size in job.mesh.shape.items())),
        ("batch", f"{config.batch_size:,}, in {config.grad_cache} micro-batch(es)"),
        *((f"loss {loss}", each(dict(entry))) for loss, entry in config.losses.items()),
        ("optimizer", f"{config.optim.name}, average {config.optim.ema}"),
        (
            "remat",
            " ".join(f"{p}={s.remat}" for p, s in model_parts(config.model) if "remat" in s),
        ),
        ("parameters", f"{numbers:,} trained in {len(trained)} arrays, {len(frozen)} frozen"),
    ]
    of_device = {
        "parameters": state.params,
        "optimizer": state.optimizer,
        "average": state.ema,
        "batch": job.batch,
    }
    held_bytes = ", ".join(f"{part} {held(tree):,}" for part, tree in of_device.items())
    return _table([*rows, ("held", f"{held_bytes} bytes of each device")])


def _state(job: Job) -> list[str]:
    """Beside the parameters: what is split as they are in one line a kind, all else array by array."""
    params = {path: _array(x) for path, x in rules.paths(job.state.params).items()}
    rest = {"optimizer": job.state.optimizer, "ema": job.state.ema, "step": job.state.step}
    alike: dict[str, int] = defaultdict(int)
    others = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(rest):
        parameter = getattr(keys[-1], "key", None)
        if params.get(parameter) == _array(leaf):
            alike[_place(keys[:-1])] += 1
        else:
            others.append((_place(keys), *_array(leaf)))
    kinds = [(kind, f"{count} arrays, each as its parameter") for kind, count in alike.items()]
    return _table(kinds) + _table(others)


def _place(keys: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def _collectives(text: str, job: Job) -> list[str]:
    totals: dict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(lambda: [0, 0])
    for c in hlo.collectives(text):
        total = totals[c.kind, hlo.axes_of(c.groups, job.mesh)]
        total[0] += c.times
        total[1] += c.times * c.bytes
    rows = [
        (kind, "+".join(axes) or "-", f"{runs:,} runs", f"{size:,} bytes received")
        for (kind, axes), (runs, size) in sorted(totals.items())
    ]
    return _table(rows)


def _array(x: jax.ShapeDtypeStruct) -> tuple[str, str]:
    """Dtype with shape, and the mesh axes that split each dimension; "-" is none, or only axes of size 1."""
    axes = [() if s is None else (s,) if isinstance(s, str) else s for s in x.sharding.spec]
    axes += [()] * (x.ndim - len(axes))
    sizes = x.sharding.mesh.shape
    split = ("+".join(a for a in names if sizes[a] > 1) or "-" for names in axes)
    return f"{x.dtype}[{','.join(map(str, x.shape))}]", " ".join(split)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
