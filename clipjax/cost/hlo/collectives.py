"""The exchanges between devices in a compiled program."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from clipjax.cost.hlo.groups import replica_groups
from clipjax.cost.hlo.program import Instruction, Program, op_name, operand_names, size_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# What runs between the beginning and the end of an exchange, and takes time.
_WORK = ("fusion", "dot", "convolution", "while", "call", "conditional", "custom-call", "reduce")

# How XLA for TPUs calls what it leaves to the network between slices, and the same of the kinds above.
_BETWEEN_SLICES = {
    "ONE_TO_ONE": "collective-permute",
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
}


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
      kind: one of `KINDS`.
      bytes: what one device receives in one execution of the bandwidth-optimal algorithm on groups of g devices:
        (g - 1) / g of the result for all-gather, of the operand for reduce-scatter and all-to-all, twice that for
        all-reduce, and the operand for collective-permute.
      times: how often it runs.
      groups: partition ids that exchange with each other; (source, target) pairs of a collective-permute. Empty for
        exchanges between slices.
      name: where it comes from, as JAX named it; "" if XLA did not keep it.
      hidden: whether other work runs between its beginning and its end.
      slices: of an exchange between TPU slices how many take part; 0 for all others.
    """

    kind: str
    bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]
    name: str
    hidden: bool = False
    slices: int = 0


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, in the order of the text; one begun and ended apart counts once."""
    program = Program(text)
    found = []
    for instruction, shapes, times, computation in program.running():
        around = program.computations[computation]
        if instruction.opcode == "recv" and "megascale" in instruction.attributes:
            found.append(_between_slices(instruction, times, around))
            continue
        kind = _kind(instruction)
        if kind not in KINDS or is_later_part(instruction, around):
            continue
        size = sum(size_of(shapes.get(n, "")) for n in operand_names(instruction))
        if kind == "collective-permute":
            groups = _pairs(instruction.attributes)
            # A device that sends to itself only receives nothing.
            moved = size if any(a != b for a, b in groups) else 0
        else:
            groups = replica_groups(instruction.attributes, program.devices)
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"  # a TPU's fusion of all-reduce and slice
            moved = round(_share(kind, len(groups[0])) * size)
        hidden = _hidden(instruction, around)
        found.append(Collective(kind, moved, times, groups, op_name(instruction), hidden))
    return found


def is_later_part(instruction: Instruction, computation: Sequence[Instruction]) -> bool:
    """Whether this is a later part of a collective that a TPU spreads over several fusions, to hide it behind them.

    The first part feeds `AsyncCollectiveStart` and the last one `AsyncCollectiveDone`; those between pass the operand
    on beside the unfinished result.
    """
    if _kind(instruction) not in KINDS:
        return False
    users = [i for i in computation if instruction.name in operand_names(i)]
    if any("AsyncCollectiveDone" in i.attributes for i in users):
        return True
    handed_on = {
        name
        for i in users
        if i is computation[-1] and i.opcode == "tuple"
        for name in operand_names(i)
    }
    return bool(handed_on) and set(operand_names(instruction)) <= handed_on


def axes_of(groups: Sequence[Sequence[int]], mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which groups lie (a pair is a group of two), in the mesh's order."""
    place = np.stack(np.unravel_index(np.arange(mesh.size), mesh.devices.shape), axis=-1)
    moving = np.zeros(len(mesh.axis_names), bool)
    for group in groups:
        corners = place[list(group)]
        moving |= (corners != corners[0]).any(axis=0)
    return tuple(axis for axis, moves in zip(mesh.axis_names, moving, strict=True) if moves)


def _kind(i: Instruction) -> str:
    kind = i.opcode.removesuffix("-start")
    return "all-to-all" if kind == "ragged-all-to-all" else kind


def _share(kind: str, size: int) -> float:
    """Of the operand, what a device of a group of so many receives."""
    return {"all-gather": size - 1.0, "all-reduce": 2 * (size - 1) / size}.get(
        kind, (size - 1) / size
    )


def _hidden(instruction: Instruction, computation: Sequence[Instruction]) -> bool:
    position = computation.index(instruction)
    later = computation[position + 1 :]
    if any(
        "AsyncCollectiveStart" in i.attributes and instruction.name in operand_names(i)
        for i in later
    ):
        return True
    if not instruction.opcode.endswith("-start") and instruction.opcode != "recv":
        return False
    # The text of a compiled program is in the order in which it runs.
    for i in later:
        if i.opcode.endswith("-done") and instruction.name in operand_names(i):
            return False
        if i.opcode in _WORK and "AllocateBuffer" not in i.attributes:
            return True
    return False


def _between_slices(i: Instruction, times: int, computation: Sequence[Instruction]) -> Collective:
    """What a device receives from other slices, over the data-centre network."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)[1]
    if kind not in _BETWEEN_SLICES:
        raise ValueError(f"The exchange between slices {i.name!r} is of an unknown type, {kind}.")
    kind = _BETWEEN_SLICES[kind]
    # "{1,2}x{0:15}": slices and the devices of each; or pairs of devices.
    members = re.search(r'_xla_megascale_target="\{([\d,:]+)\}x', i.attributes)
    slices = _members(members[1]) if members else 2
    result = size_of(i.shape.split("]")[0] + "]")  # the first of (data, u32[], token[])
    if kind == "collective-permute":
        moved = result
    else:
        operand = result * {"all-gather": 1 / slices, "reduce-scatter": slices}.get(kind, 1)
        moved = round(operand * _share(kind, slices))
    return Collective(kind, moved, times, (), op_name(i), _hidden(i, computation), slices)


def _members(text: str) -> int:
    """How many numbers `1,2` or `0:3` stands for."""
    ranges = (part.split(":") for part in text.split(","))
    return sum(int(r[-1]) - int(r[0]) + 1 for r in ranges)


def _pairs(attributes: str) -> tuple[tuple[int, ...], ...]:
    text = re.search(r"source_target_pairs=\{([^ ]*)\}", attributes)[1]
    return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text))
