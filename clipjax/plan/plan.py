"""One plan: a config on a topology, compiled, taken apart, and added up."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from clipjax import optim, rules
from clipjax.config import apply_override
from clipjax.cost import hlo
from clipjax.errors import UserError
from clipjax.mesh import batch_shards
from clipjax.models import model_parts
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
        "remat": {p: s.get("remat", "none") for p, s in model_parts(job.config.model)},
        "parameters": sum(x.size for x in jax.tree.leaves(job.state.params)),
        "memory": memory(job, compiled, loss),
        "flops": {"needed": needed},
        "compile_seconds": round(compiled.seconds, 1),
        "peaks": figures._asdict() if figures else None,
        "shardings": shardings(job),
        "remarks": job.remarks,
    }
    result["largest_batch"] = extrapolate(job, result["memory"])
    if not compiled.text:
        return result
    moved = exchanges(compiled.text, job.mesh)
    result["flops"]["compiled"] = hlo.matmul_flops(compiled.text)
    result["traffic"] = hlo.memory_traffic(compiled.text)
    result["exchanges"] = [m._asdict() for m in moved]
    if loss is not None and loss.text:
        apart = exchanges(loss.text, job.mesh)
        result["losses"] = {
            "flops": hlo.matmul_flops(loss.text),
            "link": sum(m.link for m in apart),
            "dcn": sum(m.dcn for m in apart),
        }
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


def extrapolate(job: Job, used: Mapping[str, Any]) -> int | None:
    """About the largest batch that fits, if all but parameters, their gradients and optimizer grows with the batch.

    None where there is no capacity (a CPU), or where not even what does not grow fits.
    """
    if used["capacity"] is None:
        return None
    trained, _, _ = optim.split(job.state.params, job.config.optim.freeze)
    kinds = ("parameters", "optimizer", "average")
    fixed = sum(used[k] for k in kinds) + used.get("gradients", held(trained))
    if fixed >= min(used["total"], used["capacity"]):
        return None
    unit = batch_shards(job.mesh) * job.config.grad_cache
    each = (used["total"] - fixed) / job.config.batch_size
    return int((used["capacity"] - fixed) / each) // unit * unit or None


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


def largest_batch(
    config: ConfigDict, topology: Topology, most: int = 8
) -> tuple[int, dict[str, Any]]:
    """The largest batch that fits, to about a twentieth, and its plan.

    Memory is close to linear in the batch, so each try lies on the line through the two before; the last word has the
    compiler. The batch is a multiple of what mesh and gradient cache need.

    Args:
      config: as loaded; its batch is where the search starts.
      topology: with a capacity.
      most: compilations; usually it takes three or four.

    Raises:
      UserError: nothing fits, or there is no capacity to fit into (a CPU).
    """
    if topology.figures is None:
        raise UserError(
            "A CPU has no fixed capacity, so there is no largest batch; give a TPU or a GPU."
        )
    config = ConfigDict(config.to_dict(), type_safe=False)
    job = make_job(config, topology)
    unit = batch_shards(job.mesh) * job.config.grad_cache
    tried: dict[int, dict[str, Any]] = {}
    batch = max(unit, config.batch_size // unit * unit)
    while len(tried) < most and batch not in tried:
        config.batch_size = batch
        tried[batch] = plan(config, topology, losses=False)
        batch = _next_batch({b: p["memory"] for b, p in tried.items()}, unit)
    fitting = [b for b, p in tried.items() if p["memory"]["fits"]]
    if not fitting:
        least = min(tried)
        need = tried[least]["memory"]["total"] / 1e9
        raise UserError(
            f"Not even a batch of {least} fits on {topology.name}: it takes {need:.1f} GB a device; split the "
            "parameters over more devices, or choose a remat policy that keeps less."
        )
    return max(fitting), tried[max(fitting)]


def _next_batch(tried: Mapping[int, Mapping[str, Any]], unit: int) -> int:
    """Where to look next; a batch that was tried already if that is near enough.

    Args:
      tried: batch -> its memory.
      unit: batches are multiples of it.
    """
    low = max((b for b, m in tried.items() if m["fits"]), default=0)
    high = min((b for b, m in tried.items() if not m["fits"]), default=None)
    if high is not None and high - low <= max(unit, low // 20):
        return low or high
    if low and high is None and tried[low]["total"] > 0.95 * tried[low]["capacity"]:
        return low
    if high is None:
        guess = 4.0 * low
        if len(tried) > 1:
            below = sorted(tried)[-2]
            slope = (tried[low]["total"] - tried[below]["total"]) / (low - below)
            room = 0.99 * tried[low]["capacity"] - tried[low]["total"]
            guess = min(low + room / slope, 64.0 * low) if slope > 0 else 64.0 * low
        guess = max(guess, low + unit)
    elif not low:
        guess = high / 4
    elif len(tried) % 2:
        used, room = (
            tried[high]["total"] - tried[low]["total"],
            tried[low]["capacity"] - tried[low]["total"],
        )
        guess = low + 0.99 * room / used * (high - low)
    else:  # in case that memory grows in steps
        guess = math.sqrt(low * high)
    inside = max(low + unit, guess) if high is None else min(max(low + unit, guess), high - unit)
    return max(unit, int(inside) // unit * unit)


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
    parts = [part for part, section in model_parts(config.model) if "remat" in section]
    return [
        [f"mesh.data={d}", f"mesh.fsdp={f}", f"mesh.tensor={t}"]
        + [f"model.{part}.remat={policy}" for part in parts]
        for d, f, t in meshes
        for policy in ("none", "dots", "full")
    ]


def changed(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """A copy of a config with overrides as they stand on the command line."""
    copy = ConfigDict(config.to_dict(), type_safe=False)
    for override in overrides:
        apply_override(copy, override)
    return copy
