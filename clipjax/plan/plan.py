"""One plan: a config on a topology, compiled, taken apart, and added up."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from clipjax import hlo, optim, rules
from clipjax.config import apply_override
from clipjax.errors import UserError
from clipjax.plan.compile import Compiled, Job, compile_losses, compile_step, make_job
from clipjax.plan.roofline import estimate, exchanges
from clipjax.plan.topology import Topology


def plan(config: ConfigDict, topology: Topology, losses: bool = True) -> dict[str, Any]:
    """Compiles the train step and says what it costs.

    Args:
      config: as loaded.
      topology: from `topology.find`.
      losses: also compile the losses alone, for their share of the memory.

    Returns:
      A dict for JSON; docs/plan.md describes its fields. Bytes, FLOPs and seconds are of one device and one step.
    """
    job = make_job(config, topology)
    compiled = compile_step(job)
    loss = compile_losses(job) if losses and compiled.text else None
    figures = topology.figures
    needed = job.flops_per_sample * job.config.batch_size / len(topology.devices)
    result: dict[str, Any] = {
        "topology": topology.name,
        "devices": len(topology.devices),
        "mesh": {axis: size for axis, size in job.mesh.shape.items() if size > 1},
        "batch_size": job.config.batch_size,
        "grad_cache": job.config.grad_cache,
        "remat": {t: job.config.model[t].get("remat", "none") for t in ("image", "text")},
        "parameters": sum(x.size for x in jax.tree.leaves(job.state.params)),
        "memory": memory(job, compiled, loss),
        "flops": {"needed": needed},
        "compile_seconds": round(compiled.seconds, 1),
        "peaks": figures._asdict() if figures else None,
        "shardings": shardings(job),
    }
    if not compiled.text:
        return result
    moved = exchanges(compiled.text, job.mesh, topology.platform)
    result["flops"]["compiled"] = hlo.matmul_flops(compiled.text)
    result["traffic"] = hlo.memory_traffic(compiled.text)
    result["exchanges"] = [m._asdict() for m in moved]
    if figures:
        times = estimate(figures, result["flops"]["compiled"], needed, result["traffic"], moved)
        result["seconds"] = times._asdict() | {
            "samples_per_second": [job.config.batch_size / t for t in (times.worst, times.best)]
        }
    return result


def memory(job: Job, compiled: Compiled, loss: Compiled | None) -> dict[str, Any]:
    """Bytes of one device by kind.

    Arguments are exact. Of the temporaries the compiler gives the sum only: `gradients` is what the trained parameters'
    would take at once, `losses` what the losses take when compiled alone, `activations` is the rest.
    """
    trained, _, _ = optim.split(job.state.params, job.config.optim.freeze)
    found: dict[str, Any] = {
        "parameters": held(job.state.params),
        "optimizer": held(job.state.optimizer),
        "average": held(job.state.ema),
        "batch": held(job.batch),
        "total": compiled.total,
        "capacity": compiled.allowed
        or (job.topology.figures.memory if job.topology.figures else None),
    }
    if compiled.text:
        found["temporaries"] = compiled.temporaries
        # What the compiler adds to or leaves out of the arguments: padding to tiles, fields that nobody reads.
        arguments = sum(found[k] for k in ("parameters", "optimizer", "average", "batch"))
        found["padding"] = compiled.total - compiled.temporaries - arguments
        gradients = min(held(trained), compiled.temporaries)
        found["gradients"] = gradients
        rest = compiled.temporaries - gradients
        if loss is not None:
            found["losses"] = min(rest, int(loss.temporaries + loss.outputs))
            rest -= found["losses"]
        found["activations"] = rest
    found["fits"] = found["capacity"] is None or found["total"] <= found["capacity"]
    return found


def held(tree: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def shardings(job: Job, most: int = 12) -> list[dict[str, Any]]:
    """The largest parameters: how each is split."""
    flat: Mapping[str, Any] = rules.paths(job.state.params)
    largest = sorted(flat.items(), key=lambda item: -item[1].size)[:most]
    return [
        {
            "parameter": path,
            "shape": list(x.shape),
            "split": [None if s is None else str(s) for s in x.sharding.spec],
            "bytes": held(x),
        }
        for path, x in largest
    ]


def largest_batch(config: ConfigDict, topology: Topology) -> tuple[int, dict[str, Any]]:
    """The largest batch that fits, and its plan: from the memory of two batches, then tried.

    Memory is close to linear in the batch. The batch is a multiple of what mesh and gradient cache need. Costs three
    compilations, or a few more where the line was too hopeful.

    Raises:
      UserError: nothing fits, or there is no capacity to fit into (a CPU).
    """
    if topology.figures is None:
        raise UserError(
            "A CPU has no fixed capacity, so there is no largest batch; give a TPU or a GPU."
        )
    config = ConfigDict(config.to_dict(), type_safe=False)
    job = make_job(config, topology)
    unit = job.mesh.shape["data"] * job.mesh.shape["fsdp"] * job.config.grad_cache

    def at(batch: int) -> dict[str, Any]:
        config.batch_size = batch
        return plan(config, topology, losses=False)

    small = max(unit, config.batch_size // unit // 4 * unit)
    points = [(b, at(b)["memory"]) for b in (small, 2 * small)]
    (b0, m0), (b1, m1) = points
    slope = (m1["total"] - m0["total"]) / (b1 - b0)
    room = m0["capacity"] - m0["total"]
    if room < 0:
        raise UserError(
            f"Not even a batch of {b0} fits on {topology.name}: it takes {m0['total'] / 1e9:.1f} GB a device."
        )
    guess = b0 + int(room / max(slope, 1e-9)) // unit * unit
    while guess > b0:
        found = at(guess)
        if found["memory"]["fits"]:
            return guess, found
        guess = max(b0, int(guess * 0.95) // unit * unit)
    return b0, at(b0)


def variations(config: ConfigDict, topology: Topology) -> list[list[str]]:
    """Overrides worth comparing: how the devices are split, and what the backward pass recomputes.

    Parameters are split over all devices, over those of a host, or not at all; MLPs and heads over 1 or 4.
    """
    count = len(topology.devices)
    host = topology.figures.host if topology.figures else count
    meshes = []
    for fsdp in sorted({1, min(host, count), count}):
        for tensor in (1, 4):
            if count % (fsdp * tensor) == 0:
                meshes.append((count // fsdp // tensor, fsdp, tensor))
    towers = [t for t in ("image", "text") if "remat" in config.model[t]]
    return [
        [f"mesh.data={d}", f"mesh.fsdp={f}", f"mesh.tensor={t}"]
        + [f"model.{tower}.remat={policy}" for tower in towers]
        for d, f, t in meshes
        for policy in ("none", "dots", "full")
    ]


def changed(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """A copy of a config with overrides as they stand on the command line."""
    copy = ConfigDict(config.to_dict(), type_safe=False)
    for override in overrides:
        apply_override(copy, override)
    return copy
