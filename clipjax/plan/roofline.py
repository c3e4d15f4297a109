"""From a compiled program to seconds: what its arithmetic, memory and links take at their published peaks."""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from clipjax.cost import hlo
from clipjax.cost.hardware import Device
from clipjax.cost.hlo import Collective
from clipjax.mesh import network_domains


class Exchange(NamedTuple):
    """What one kind of collective moves along some mesh axes in one step.

    Attributes:
      kind, axes: which.
      times: how many run.
      link: bytes that a device receives over the fast network.
      dcn: bytes that it receives over the data-centre network.
      hidden: share of these bytes that the program moves while it computes.
    """

    kind: str
    axes: tuple[str, ...]
    times: int
    link: float
    dcn: float
    hidden: float


class Estimate(NamedTuple):
    """Seconds of one step, if everything ran at its peak.

    Attributes:
      compute: matrix products.
      memory: reading and writing.
      link, dcn: the two networks.
      best: everything overlaps, the slowest counts.
      worst: communication overlaps with nothing.
      mfu: (worst, best) share of peak that the algorithm's FLOPs would have.
    """

    compute: float
    memory: float
    link: float
    dcn: float
    best: float
    worst: float
    mfu: tuple[float, float]


def exchanges(text: str, mesh: Mesh) -> list[Exchange]:
    """All collectives of a compiled program, added up by kind and axes, largest first.

    For TPU slices the program itself says what crosses the data-centre network. A group of GPUs that spans hosts is
    taken to work in two stages, as NCCL does: only what the stage between hosts needs crosses it.
    """
    domain = network_domains(mesh).reshape(-1)
    found: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
    for collective in hlo.collectives(text):
        if collective.slices:
            axes, link, dcn = _across(mesh, domain), 0.0, float(collective.bytes)
        else:
            axes = hlo.axes_of(collective.groups, mesh)
            link, dcn = _split(collective, domain)
        hidden = (link + dcn) * collective.hidden
        total = found.setdefault((collective.kind, axes), np.zeros(4))
        total += collective.times * np.array([1, link, dcn, hidden])
    rows = [
        Exchange(*key, int(n), link, dcn, hidden / max(link + dcn, 1.0))
        for key, (n, link, dcn, hidden) in found.items()
    ]
    return sorted(rows, key=lambda r: -(r.link + r.dcn))


def _across(mesh: Mesh, domain: np.ndarray) -> tuple[str, ...]:
    """The mesh axes along which the fast network ends."""
    names = domain.reshape(mesh.devices.shape)
    return tuple(
        axis for i, axis in enumerate(mesh.axis_names) if (np.diff(names, axis=i) != 0).any()
    )


def _split(collective: Collective, domain: np.ndarray) -> tuple[float, float]:
    """(bytes over the fast network, bytes over the data-centre network) of one execution."""
    if collective.kind == "collective-permute":
        crosses = any(domain[a] != domain[b] for a, b in collective.groups)
        return (0.0, collective.bytes) if crosses else (collective.bytes, 0.0)
    group = domain[list(collective.groups[0])]
    size, parts = len(group), len(set(group.tolist()))
    if parts == 1:
        return collective.bytes, 0.0
    inner = size / parts
    whole = collective.bytes * size / (size - 1)
    return whole * (inner - 1) / inner, whole * (parts - 1) / parts / inner


def estimate(
    figures: Device,
    compiled_flops: float,
    needed_flops: float,
    traffic: float,
    moved: list[Exchange],
) -> Estimate:
    """Times of one device.

    Args:
      figures: its peaks.
      compiled_flops: what it computes in a step.
      needed_flops: what the algorithm needs of it, without what is repeated to save memory.
      traffic: bytes read and written.
      moved: from `exchanges`.
    """
    compute, memory = compiled_flops / figures.flops, traffic / figures.memory_bandwidth
    link = sum(m.link for m in moved) / figures.link
    dcn = sum(m.dcn for m in moved) / figures.dcn
    best, worst = max(compute, memory, link, dcn), max(compute, memory) + link + dcn
    ideal = needed_flops / figures.flops
    return Estimate(compute, memory, link, dcn, best, worst, (ideal / worst, ideal / best))
