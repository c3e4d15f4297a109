"""Read a compiled program's text: its collectives, its matrix products, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once and says nothing of collectives. Here every instruction counts as
often as the loops around it go round. The text is what `jax.jit(f).lower(...).compile().as_text()` gives, for a CPU, a
GPU or a TPU, and describes one device's program.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

# Bits of an element; everything else of a shape is in its text.
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0, "c64": 64, "c128": 128}

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
      kind: one of `KINDS`.
      bytes: what one device receives in one execution of the bandwidth-optimal algorithm on groups of g devices:
        (g - 1) / g of the result for all-gather, of the operand for reduce-scatter and all-to-all, twice that for
        all-reduce, and the operand for collective-permute.
      times: how often it runs.
      groups: partition ids that exchange with each other; (source, target) pairs of a collective-permute.
      name: where it comes from, as JAX named it; "" if XLA did not keep it.
    """

    kind: str
    bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]
    name: str


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str


class _Program:
    """Computations of a module, and how often each runs."""

    def __init__(self, text: str):
        self.computations: dict[str, list[_Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header and not line.startswith(("HloModule", " ")):
                current = self.computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
            elif current is not None and line.startswith("  "):
                instruction = _read(line)
                if instruction:
                    current.append(instruction)
        if not entry:
            raise ValueError("This is not the text of a compiled program: it has no ENTRY.")
        partitions = re.search(r"num_partitions=(\d+)", text)
        replicas = re.search(r"replica_count=(\d+)", text)
        self.devices = int((partitions or replicas or [0, 1])[1])
        self.times = self._count(entry)

    def _count(self, entry: str) -> dict[str, int]:
        times: dict[str, int] = defaultdict(int, {entry: 1})
        # A computation is written before those that call it.
        for name in reversed(self.computations):
            if times[name]:
                for instruction in self.computations[name]:
                    for callee, factor in self.calls(instruction):
                        times[callee] += factor * times[name]
        return times

    def calls(self, instruction: _Instruction) -> Iterator[tuple[str, int]]:
        """(computation, how often) for what an instruction calls; each branch of a conditional counts once."""
        attributes = instruction.attributes
        if instruction.opcode == "while":
            yield re.search(r"body=%([\w.\-]+)", attributes)[1], self._trips(instruction)
            return
        for called in re.findall(r"(?:calls|to_apply|called_computation)=%([\w.\-]+)", attributes):
            yield called, 1
        for called in re.findall(
            r"(?:true_computation|false_computation)=%([\w.\-]+)", attributes
        ) + re.findall(
            r"%([\w.\-]+)",
            (re.search(r"branch_computations=\{([^}]*)\}", attributes) or ["", ""])[1],
        ):
            yield called, 1

    def _trips(self, loop: _Instruction) -> int:
        known = re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        # A scan's condition compares its counter, which starts at 0, with a constant.
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)[1]
        bounds = {
            int(i.operands)
            for i in self._closure(condition)
            if i.opcode == "constant" and re.fullmatch(r"\d+", i.operands)
        }
        if len(bounds) != 1:
            raise ValueError(
                f"The trip count of the loop {loop.name!r} cannot be read from its condition."
            )
        return bounds.pop()

    def _closure(self, name: str) -> Iterator[_Instruction]:
        for instruction in self.computations[name]:
            yield instruction
            for called, _ in self.calls(instruction):
                yield from self._closure(called)

    def running(self) -> Iterator[tuple[_Instruction, dict[str, str], int, str]]:
        """(instruction, shapes of its computation by name, how often it runs, its computation)."""
        for name, instructions in self.computations.items():
            if self.times[name]:
                shapes = {i.name: i.shape for i in instructions}
                for instruction in instructions:
                    yield instruction, shapes, self.times[name], name


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, in the order of the text; one begun and ended apart counts once."""
    program = _Program(text)
    found = []
    for instruction, shapes, times, computation in program.running():
        kind = _kind(instruction)
        if kind not in KINDS or _goes_on(instruction, program.computations[computation]):
            continue
        size = sum(_bytes(shapes.get(n, "")) for n in _names(instruction.operands))
        if kind == "collective-permute":
            groups = _pairs(instruction.attributes)
            # A device that sends to itself only receives nothing.
            moved = size if any(a != b for a, b in groups) else 0
        else:
            groups = replica_groups(instruction.attributes, program.devices)
            g = len(groups[0])
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"  # a TPU's fusion of all-reduce and slice
            share = {"all-gather": g - 1, "all-reduce": 2 * (g - 1) / g}.get(kind, (g - 1) / g)
            moved = round(share * size)
        found.append(Collective(kind, moved, times, groups, _op_name(instruction.attributes)))
    return found


def _kind(i: _Instruction) -> str:
    kind = i.opcode.removesuffix("-start")
    return "all-to-all" if kind == "ragged-all-to-all" else kind


def _goes_on(collective: _Instruction, computation: list[_Instruction]) -> bool:
    """Whether this is the later part of a collective that a TPU spreads over several fusions, to hide it behind them.

    The first part feeds `AsyncCollectiveStart` and the last one `AsyncCollectiveDone`; those between pass the operand
    on beside the unfinished result.
    """
    users = [i for i in computation if collective.name in _names(i.operands)]
    if any("AsyncCollectiveDone" in i.attributes for i in users):
        return True
    passed_on = {
        n for i in users if i is computation[-1] and i.opcode == "tuple" for n in _names(i.operands)
    }
    return bool(passed_on) and set(_names(collective.operands)) <= passed_on


def axes_of(groups: Sequence[Sequence[int]], mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which groups lie (a pair is a group of two), in the mesh's order."""
    place = np.stack(np.unravel_index(np.arange(mesh.size), mesh.devices.shape), axis=-1)
    moving = np.zeros(len(mesh.axis_names), bool)
    for group in groups:
        corners = place[list(group)]
        moving |= (corners != corners[0]).any(axis=0)
    return tuple(axis for axis, moves in zip(mesh.axis_names, moving, strict=True) if moves)


def matmul_flops(text: str) -> int:
    """FLOPs of one device's matrix products and convolutions, a multiply-add as two."""
    program = _Program(text)
    return sum(times * _flops(i, shapes) for i, shapes, times, _ in program.running())


# They move nothing by themselves, or what they call is counted instead.
_FREE = {
    *(
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
    ),
    *(
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "optimization-barrier",
        "copy-done",
        "custom-call-done",
    ),
}


def memory_traffic(text: str) -> int:
    """Bytes that one device reads from and writes to its memory: operands and results of all that runs, loops included.

    An upper estimate, as if nothing stayed in a cache between two instructions. Of an array that is only sliced (the
    stacked parameters of a scan) a slice counts, and arrays in a TPU's on-chip memory do not.
    """
    program = _Program(text)
    fused = {
        name
        for instructions in program.computations.values()
        for i in instructions
        if i.opcode == "fusion"
        for name, _ in program.calls(i)
    }
    total = 0
    for i, shapes, times, computation in program.running():
        if computation in fused or i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
            continue
        inner = []
        if i.opcode == "fusion":
            inner = program.computations[next(name for name, _ in program.calls(i))]
        elif i.opcode in ("dynamic-slice", "dynamic-update-slice"):
            inner = [i]
        total += times * _touched(i, shapes, inner)
    return total


def _touched(i: _Instruction, shapes: dict[str, str], inner: list[_Instruction]) -> int:
    """Bytes of an instruction's operands and result; of what `inner` only slices or updates, the slices."""
    operands = _names(i.operands)
    if inner == [i]:
        names = dict(enumerate(operands))
        within = shapes
    else:
        names = {int(p.operands): p.name for p in inner if p.opcode == "parameter"}
        within = {p.name: p.shape for p in inner}
    result, total = _off_chip(i.shape), 0
    on_the_way = [p for p in inner if p is not i and _kind(p) in KINDS and _goes_on(p, inner)]
    if on_the_way:  # what it has received is counted with its first part
        carried = {p.name for p in on_the_way}
        handed_on = [n for n in _names(inner[-1].operands) if n in carried | set(names.values())]
        result -= sum(_off_chip(within[n]) for n in handed_on)
    for number, operand in enumerate(operands):
        size = _off_chip(shapes.get(operand, ""))
        users = [p for p in inner if names.get(number) in _names(p.operands)]
        if on_the_way and all(p in on_the_way or p is inner[-1] for p in users):
            continue
        slices = [p for p in users if p.opcode == "dynamic-slice"]
        updates = [
            p
            for p in users
            if p.opcode == "dynamic-update-slice" and _names(p.operands)[0] == names[number]
        ]
        if users and len(slices) + len(updates) == len(users):
            part = sum(_bytes(p.shape) for p in slices)
            for update in updates:  # in place: the rest is neither read nor written
                changed = _bytes(within[_names(update.operands)[1]])
                part += changed
                result -= _bytes(update.shape) - changed
            size = min(size, part)
        total += size
    return total + max(result, 0)


def _off_chip(shape: str) -> int:
    """Bytes of the arrays of a shape that are not in a TPU's on-chip memory, S(1)."""
    arrays = re.findall(r"\w+\[[\d,<=]*\](?:\{[^{}]*\})?", shape)
    return sum(_bytes(a) for a in arrays if "S(1)" not in a)


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
        shape, source, order = (_ints(t) for t in iota.groups(default=""))
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
        return np.array(_ints(text))
    return _permuted_range(*(_ints(t) for t in permuted.groups(default=""))).reshape(-1)


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


def _flops(i: _Instruction, shapes: dict[str, str]) -> int:
    if i.opcode == "dot":
        contracted = _ints(re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)[1])
        return _product(i, shapes, contracted)
    if i.opcode == "convolution":
        return _convolution(i, shapes)
    if i.opcode == "custom-call" and re.search(
        r'custom_call_target="__(cublas|onednn)\$', i.attributes
    ):
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.attributes)
        if contracted:
            return _product(i, shapes, _ints(contracted[1].replace('"', "")))
    return 0


def _product(i: _Instruction, shapes: dict[str, str], contracted: list[int]) -> int:
    left = _dims(shapes[_names(i.operands)[0]])
    return 2 * math.prod(_dims(i.shape)) * math.prod(left[d] for d in contracted)


def _convolution(i: _Instruction, shapes: dict[str, str]) -> int:
    """Only taps that meet an element count: a TPU writes batched products as convolutions of mostly padding."""
    left, right, _ = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes).groups()
    image, kernel = (_dims(shapes[n]) for n in _names(i.operands)[:2])
    result = _dims(i.shape)
    labels = re.search(r"dim_labels=\w+->(\w+)", i.attributes)[1]
    groups = int((re.search(r"batch_group_count=(\d+)", i.attributes) or [0, 1])[1])
    window = re.search(r"window=\{([^}]*)\}", i.attributes)
    window = dict(p.split("=") for p in window[1].split()) if window else {}
    taps = 1
    for d, label in enumerate(sorted(c for c in left if c.isdigit())):
        pick = lambda name, default, d=d: window.get(name, "x".join([default] * 9)).split("x")[d]  # noqa: E731
        stride, spread, holes = (int(pick(n, "1")) for n in ("stride", "lhs_dilate", "rhs_dilate"))
        before = int(pick("pad", "0_0").split("_")[0])
        place = (
            np.arange(result[labels.index(label)])[:, None] * stride
            + np.arange(kernel[right.index(label)]) * holes
            - before
        )
        size = (image[left.index(label)] - 1) * spread + 1
        taps *= int(((place >= 0) & (place < size) & (place % spread == 0)).sum())
    features = kernel[right.index("i")] * kernel[right.index("o")]
    return 2 * taps * features * (image[left.index("b")] // groups)


def _read(line: str) -> _Instruction | None:
    """`  %name = shape opcode(operands), attributes`."""
    match = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing("(" + rest) - 1
    return _Instruction(match[1], shape, opcode, rest[:end], rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the bracket that `text` begins with is closed."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if not depth:
            return position
    raise ValueError(f"A bracket is not closed in {text[:80]!r}.")


def _names(operands: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operands)


def _op_name(attributes: str) -> str:
    return (re.search(r'op_name="([^"]*)"', attributes) or ["", ""])[1]


def _pairs(attributes: str) -> tuple[tuple[int, ...], ...]:
    text = re.search(r"source_target_pairs=\{([^ ]*)\}", attributes)[1]
    return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text))


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
    """(element type, dimensions) of each array of a shape; layouts are not read."""
    plain = re.sub(r"\{[^{}]*\}", "", shape)
    return [(kind, _ints(dims)) for kind, dims in re.findall(r"(\w+)\[([\d,<=]*)\]", plain)]


def _dims(shape: str) -> list[int]:
    return _arrays(shape)[0][1]


def _bytes(shape: str) -> int:
    total = 0
    for kind, dims in _arrays(shape):
        bits = _BITS[kind] if kind in _BITS else int(re.search(r"\d+", kind)[0])
        total += math.prod(dims) * bits // 8
    return total


def _ints(text: str) -> list[int]:
    return [int(t) for t in re.findall(r"\d+", text)]


def _tuples(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row) for row in groups)
