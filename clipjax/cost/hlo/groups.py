"""Which devices exchange with each other: the ways in which XLA writes groups of them."""

import itertools
import math
import re

import numpy as np

from clipjax.cost.hlo.program import integers


def replica_groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of a collective, from any of the ways in which XLA writes them.

    `{{0,1},{2,3}}`, `{}` (all), `[2,4]<=[8]`, `[4,2]<=[2,4]T(1,0)`, `mesh['a'=2,'b'=4] {'b'}`, or the last with the
    mesh's devices in another order, `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.
    """
    match = re.search(r"replica_groups=(.*)", attributes)
    rest = match[1] if match else "{}"
    if rest.startswith("{{"):
        inner = rest[1 : rest.index("}}") + 1]
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", inner))
    if rest.startswith("{}"):
        return (tuple(range(devices)),)
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, source, order = (integers(t) for t in iota.groups(default=""))
        return _tuples(_permuted_range(source, order).reshape(shape))
    named = re.match(
        r"@?\w*\[((?:'[^']+'=\d+,?\s*)+)\](?:, device_ids=\((.*?)\)(?= \{))?\s*\{([^}]*)\}", rest
    )
    if named:
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        groups = _along(axes, re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[3]))
        return _tuples(_device_ids(named[2] or f"[{groups.size}]")[groups])
    raise ValueError(f"These replica groups cannot be read: {rest[:80]!r}.")


def _device_ids(text: str) -> np.ndarray:
    """A mesh's devices in its order: a list, or a permuted range such as `[4,2]T(1,0)`."""
    permuted = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not permuted:
        return np.array(integers(text))
    return _permuted_range(*(integers(t) for t in permuted.groups(default=""))).reshape(-1)


def _permuted_range(shape: list[int], order: list[int]) -> np.ndarray:
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(order or range(len(shape)))


def _along(axes: dict[str, int], chosen: list[tuple[str, str, str]]) -> np.ndarray:
    """Groups [n, g] along the chosen axes of a mesh; an axis `a:(p)s` is the part of a of size s after a factor p."""
    parts: list[
        tuple[str, int, int]
    ] = []  # (axis, sizes before it, size), refined by the chosen parts
    for name, size in axes.items():
        edges = {1, size}
        for axis, before, length in chosen:
            if axis == name and before:
                edges |= {int(before), int(before) * int(length)}
        steps = sorted(edges)
        parts += [(name, a, b // a) for a, b in itertools.pairwise(steps)]
    wanted = set()
    for axis, before, length in chosen:
        low, high = (int(before), int(before) * int(length)) if before else (1, axes[axis])
        wanted |= {
            i for i, (n, a, s) in enumerate(parts) if n == axis and low <= a and a * s <= high
        }
    ids = np.arange(math.prod(axes.values())).reshape([s for *_, s in parts])
    inside = [i for i in range(len(parts)) if i in wanted]
    outside = [i for i in range(len(parts)) if i not in wanted]
    size = math.prod(parts[i][2] for i in inside)
    return ids.transpose(outside + inside).reshape(-1, size)


def _tuples(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row) for row in groups)
