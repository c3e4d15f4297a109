"""`clipjax plan`: the command, and how a plan reads on the console."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from clipjax.errors import UserError
from clipjax.log.console import console
from clipjax.log.outputs import check_writable
from clipjax.plan import topology as topologies
from clipjax.plan.plan import changed, largest_batch, plan, variations

_MEMORY = {
    "parameters": "exact",
    "optimizer": "exact: moments and counters",
    "average": "exact: of the trained parameters",
    "batch": "exact",
    "padding": "what the compiler adds to the arguments, or leaves out",
    "gradients": "of temporaries: all trained parameters at once",
    "losses": "of temporaries: what the losses take when compiled alone",
    "activations": "of temporaries: the rest",
}


def run(
    config: ConfigDict,
    topology: str,
    slices: int = 1,
    *,
    sweep: bool = False,
    largest: bool = False,
    output: str | None = None,
) -> int:
    """Plans a config and prints it.

    Args:
      config: as loaded.
      topology: such as "v5e:16x16".
      slices: how many of them.
      sweep: compare meshes and remat policies instead of looking at one.
      largest: look for the largest batch that fits.
      output: file for JSON.

    Returns:
      0; 1 where nothing that was asked for fits.

    Raises:
      UserError: settings or a topology that cannot work.
    """
    if output:
        check_writable(Path(output))
    target = topologies.find(topology, slices)
    out = console()
    result: dict[str, Any]
    if sweep:
        plans = compare(config, target, out)
        result, fits = {"sweep": plans}, any(p["memory"]["fits"] for p in plans if "memory" in p)
    elif largest:
        batch, result = largest_batch(config, target)
        out.print(f"The largest batch that fits: {batch:,}", style="bold")
        show(result, out)
        fits = True
    else:
        result = plan(config, target)
        show(result, out)
        fits = result["memory"]["fits"]
    if output:
        Path(output).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if fits else 1


def show(found: Mapping[str, Any], out: Console) -> None:
    """Prints one plan."""
    mesh = ", ".join(f"{a}={n}" for a, n in found["mesh"].items()) or "one device"
    remat = ", ".join(f"{tower} {policy}" for tower, policy in found["remat"].items())
    out.print(f"{found['topology']}: {found['devices']:,} devices, mesh {mesh}", style="bold")
    out.print(
        f"batch {found['batch_size']:,}, grad_cache {found['grad_cache']}, remat {remat}, "
        f"{found['parameters']:,} parameters; compiled in {found['compile_seconds']} s"
    )
    for remark in found["remarks"]:
        out.print(remark, style="yellow", markup=False, highlight=False)
    out.print(_memory(found["memory"]))
    if found["largest_batch"]:
        out.print(
            f"Largest batch: about {found['largest_batch']:,}, by proportion; --largest-batch compiles to find it."
        )
    if "exchanges" not in found:
        return
    out.print(_shardings(found["shardings"]))
    out.print(_exchanges(found["exchanges"]))
    out.print(_arithmetic(found))


def compare(config: ConfigDict, target: topologies.Topology, out: Console) -> list[dict[str, Any]]:
    """Plans every variation, prints them by estimated time, and recommends one."""
    plans = []
    for overrides in variations(config, target):
        try:
            found = plan(changed(config, overrides), target, losses=False)
        except UserError as error:
            found = {"refused": str(error)}
        plans.append({"overrides": overrides, **found})
        out.print(f"{len(plans)}: {' '.join(overrides)}", style="dim")
    time = lambda p: p["seconds"]["best"] if "seconds" in p else float("inf")  # noqa: E731
    plans.sort(key=lambda p: (not p.get("memory", {}).get("fits", False), time(p)))
    table = Table("overrides", "GB", "fits", "ms, best", "ms, worst", "MFU", title="Sweep")
    for p in plans:
        if "refused" in p:
            table.add_row(" ".join(p["overrides"]), "", p["refused"])
            continue
        times = p.get("seconds")
        table.add_row(
            " ".join(p["overrides"]),
            f"{p['memory']['total'] / 1e9:.2f}",
            "yes" if p["memory"]["fits"] else "no",
            f"{times['best'] * 1e3:.1f}" if times else "",
            f"{times['worst'] * 1e3:.1f}" if times else "",
            _range(times["mfu"]) if times else "",
        )
    out.print(table)
    best = plans[0]
    if best.get("memory", {}).get("fits"):
        flags = " ".join(f"--config.{o}" for o in best["overrides"])
        out.print(f"Recommended: {flags}", markup=False, highlight=False, soft_wrap=True)
    else:
        out.print("None of them fits; take a smaller batch, a larger grad_cache, or more devices.")
    return plans


def _memory(memory: Mapping[str, Any]) -> Table:
    table = Table("memory of one device", "GB", "what it is", title="Memory")
    for kind, what in _MEMORY.items():
        if kind in memory:
            table.add_row(kind, f"{memory[kind] / 1e9:.3f}", what)
    table.add_section()
    table.add_row("total", f"{memory['total'] / 1e9:.3f}", "arguments, results and temporaries")
    if memory["capacity"] is not None:
        room = memory["capacity"] - memory["total"]
        table.add_row(
            "capacity",
            f"{memory['capacity'] / 1e9:.3f}",
            f"fits, {room / 1e9:.2f} GB free"
            if room >= 0
            else f"too large by {-room / 1e9:.2f} GB",
        )
    return table


def _shardings(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("largest parameters", "shape", "split over", "MB a device", title="Shardings")
    for row in rows:
        split = ", ".join(s or "-" for s in row["split"]) or "-"
        table.add_row(row["parameter"], str(row["shape"]), split, f"{row['bytes'] / 1e6:.2f}")
    return table


def _exchanges(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "collective",
        "axes",
        "times",
        "MB received, fast network",
        "MB, data centre",
        "while computing",
        title="Exchanges",
    )
    for row in rows:
        table.add_row(
            row["kind"],
            ", ".join(row["axes"]),
            f"{row['times']:,}",
            f"{row['link'] / 1e6:,.2f}",
            f"{row['dcn'] / 1e6:,.2f}",
            f"{row['hidden']:.0%}",
        )
    return table


def _arithmetic(found: Mapping[str, Any]) -> Table:
    table = Table("one step of one device", "", "at the peak of", title="Roofline (an estimate)")
    flops, times, peaks = found["flops"], found.get("seconds"), found["peaks"]
    table.add_row("FLOPs the algorithm needs", f"{flops['needed']:.4g}", "")
    table.add_row(
        "FLOPs of the program",
        f"{flops['compiled']:.4g}",
        "with what remat repeats and the optimizer multiplies",
    )
    if "losses" in found:
        table.add_row("  the losses", f"{found['losses']['flops']:.4g}", "")
    table.add_row("bytes read and written", f"{found['traffic']:.4g}", "at most")
    if times:
        rows = (
            ("matrix products", "compute", f"{peaks['flops'] / 1e12:.1f} TFLOP/s in bfloat16"),
            ("memory", "memory", f"{peaks['memory_bandwidth'] / 1e9:.0f} GB/s"),
            ("fast network", "link", f"{peaks['link'] / 1e9:.0f} GB/s"),
            ("data-centre network", "dcn", f"{peaks['dcn'] / 1e9:.1f} GB/s"),
        )
        for name, key, at in rows:
            table.add_row(name, f"{times[key] * 1e3:.2f} ms", at)
        low, high = times["samples_per_second"]
        table.add_section()
        table.add_row(
            "step", f"{times['best'] * 1e3:.1f} - {times['worst'] * 1e3:.1f} ms", peaks["source"]
        )
        table.add_row("samples/s, all devices", f"{low:,.0f} - {high:,.0f}", "")
        table.add_row("MFU", _range(times["mfu"]), "needed FLOPs over the peak's")
    return table


def _range(mfu: Sequence[float]) -> str:
    return f"{mfu[0]:.0%} - {mfu[1]:.0%}"
