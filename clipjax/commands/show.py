"""`clipjax show`: what a config means, before anything is allocated or trained."""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from clipjax import optim, rules
from clipjax.batch import example_batch
from clipjax.commands.arguments import add_config, read_config
from clipjax.config import to_json
from clipjax.cost import flops
from clipjax.data.sources import make_source
from clipjax.errors import UserError
from clipjax.forward import UPDATES
from clipjax.log.console import console
from clipjax.mesh import AXES, make_mesh
from clipjax.models import TOWERS
from clipjax.prepare import Prepared, prepare

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_config(parser)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    return show(read_config(args, overrides))


def show(config: ConfigDict) -> int:
    """Prints the resolved config, every parameter, and the counts that a run's cost follows from.

    Nothing is allocated: shapes come from `eval_shape`, FLOPs from the traced programs. Of the data only the sources
    are opened, for their lengths. A mesh that needs more devices than there are here is shown as if they were.

    Args:
      config: as `load_config` gives it.

    Returns:
      0.

    Raises:
      UserError: settings that cannot work, as `clipjax train` would say.
    """
    if not config.data.sources:
        raise UserError("config.data.sources is empty; name at least one.")
    epoch = sum(len(make_source(entry, name)) for name, entry in config.data.sources.items())
    mesh, remark = _mesh(config.mesh)
    prepared = prepare(config, mesh, epoch)
    config, state = prepared.config, prepared.state
    params = rules.paths(state.params)
    trained = _trained(state.params, config.optim.freeze)

    out = console()
    out.print("Config", style="bold")
    out.print(to_json(config), markup=False, highlight=False, soft_wrap=True)
    out.print(_parameter_table(params, trained))
    for line in [remark, *prepared.remarks]:
        if line:
            out.print(line, markup=False, highlight=False, soft_wrap=True)

    steps = config.total_samples // config.batch_size
    _print_pairs(
        out,
        {
            "parameters": f"{count(params):,} ({_bytes(params)})",
            "  trained": f"{sum(trained.values()):,}",
            "  frozen": f"{count(params) - sum(trained.values()):,}",
            "optimizer state": _bytes(jax.tree.leaves(state.optimizer)),
            "averaged parameters": _bytes(state.ema) if state.ema else "none",
            **_forward(prepared),
            "training FLOPs a sample": f"{_si(prepared.flops_per_sample)}FLOP",
            "training FLOPs of the run": f"{prepared.flops_per_sample * config.total_samples:.3g}",
            "samples": f"{config.total_samples:,}",
            "steps": f"{steps:,} of {config.batch_size:,} samples",
            "epochs": f"{config.total_samples / epoch:.4g} of {epoch:,} records",
            "warm-up": f"{config.optim.warmup:,} samples",
            "mesh": ", ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES),
        },
    )
    return 0


def count(params: Shapes) -> int:
    """Numbers in all arrays together."""
    return sum(math.prod(leaf.shape) for leaf in params.values())


def group(path: str) -> str:
    """Which subtotal a parameter belongs to: a tower with its projection, or "shared" for lone scalars."""
    first, _, rest = path.partition("/")
    return first.removesuffix("_head") if rest else "shared"


def _mesh(sizes: Mapping[str, int]) -> tuple[Mesh | AbstractMesh, str]:
    """The config's mesh, or an abstract one of its size where this machine has too few devices; and a remark."""
    sizes = dict(sizes)
    known = math.prod(size for size in sizes.values() if size != -1)
    if known <= jax.device_count():
        return make_mesh(sizes), ""
    shape = tuple(max(1, int(sizes.get(axis, 1))) for axis in AXES)
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    remark = f"This machine has {jax.device_count()} device(s); shown for {math.prod(shape)}."
    return AbstractMesh(shape, AXES, axis_types=types), remark


def _trained(params: Any, freeze: Any) -> dict[str, int]:
    """How many numbers of each array train; of a stack of layers, some may be frozen."""
    trained, _, masks = optim.split(params, freeze)
    numbers = {path: math.prod(leaf.shape) for path, leaf in rules.paths(params).items()}
    return {p: round(n * masks[p].mean()) if p in trained else 0 for p, n in numbers.items()}


def _parameter_table(params: Shapes, trained: Mapping[str, int]) -> Table:
    table = Table(title="Parameters", title_justify="left")
    for column in ("path", "shape", "dtype", "sharding", "trained"):
        table.add_column(column, overflow="fold")
    table.add_column("numbers", justify="right", no_wrap=True)
    groups: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for path, leaf in params.items():
        groups.setdefault(group(path), {})[path] = leaf
    for name, members in groups.items():
        for path, leaf in members.items():
            size = math.prod(leaf.shape)
            state = {size: "yes", 0: "no"}.get(trained[path], f"{trained[path]:,}")
            table.add_row(
                path, str(leaf.shape), str(leaf.dtype), _sharding(leaf), state, f"{size:,}"
            )
        table.add_section()
        part = f"{sum(trained[path] for path in members):,}"
        total = f"{count(members):,}"
        table.add_row(f"total of {name}", "", "", "", part, total, style="bold")
        table.add_section()
    return table


def _sharding(leaf: jax.ShapeDtypeStruct) -> str:
    """Over which axes each dimension is split: "fsdp, -, tensor", or "whole"."""
    shape = leaf.sharding.mesh.shape
    axes = []
    for entry in leaf.sharding.spec:
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        axes.append("+".join(name for name in names if shape[name] > 1) or "-")
    return "whole" if all(axis == "-" for axis in axes) else ", ".join(axes)


def _forward(prepared: Prepared) -> dict[str, str]:
    """FLOPs of the model without training, for one sample: both towers, or all that it computes; and its parts."""
    one = example_batch(prepared.config)

    def outputs(params: Any, batch: Shapes) -> dict[str, Any]:
        found = prepared.model.apply({"params": params}, batch)
        return {name: x for name, x in found.items() if name != UPDATES}

    trace = jax.make_jaxpr(outputs, return_shape=True)
    program, shapes = trace(prepared.state.params, one)
    names = sorted(shapes)

    def work(*wanted: str) -> int:
        return flops.of_program(program.jaxpr, [name in wanted for name in names])

    towers = {f: work(f"{f}_embedding") for f in TOWERS if f"{f}_embedding" in shapes}
    pair = len(towers) == len(TOWERS)
    total = sum(towers.values()) if pair else work(*names)
    rows = {f"forward FLOPs a {'pair' if pair else 'sample'}": f"{_si(total)}FLOP"}
    rows |= {f"  {tower} tower": f"{_si(count)}FLOP" for tower, count in towers.items()}
    rest = work(*names) - total
    if rest:
        rows["forward FLOPs beside the towers"] = f"{_si(rest)}FLOP"
    return rows


def _bytes(arrays: Any) -> str:
    leaves = arrays.values() if isinstance(arrays, Mapping) else arrays
    return f"{_si(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))}B"


def _si(number: float) -> str:
    """Four digits and a prefix: 41.09 G."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g} {prefix}"
    return f"{number:.4g} "


def _print_pairs(out: Console, pairs: Mapping[str, str]) -> None:
    width = max(map(len, pairs))
    for name, value in pairs.items():
        out.print(f"{name:<{width}}  {value}", markup=False, highlight=False, soft_wrap=True)
