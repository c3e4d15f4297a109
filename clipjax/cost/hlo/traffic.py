"""Bytes that a compiled program reads from and writes to its memory."""

import re

from clipjax.cost.hlo.collectives import is_later_part
from clipjax.cost.hlo.program import Instruction, Program, operand_names, size_of

# They move nothing by themselves, or what they call is counted instead.
_FREE = {
    *("parameter", "constant", "iota", "partition-id", "replica-id", "tuple", "get-tuple-element"),
    *("bitcast", "optimization-barrier", "while", "conditional", "call", "after-all", "copy-done"),
    *("custom-call-done",),
}


def memory_traffic(text: str) -> int:
    """Bytes that one device reads from and writes to its memory: operands and results of all that runs, loops included.

    An upper estimate, as if nothing stayed in a cache between two instructions. Of an array that is only sliced (the
    stacked parameters of a scan) a slice counts, and arrays in a TPU's on-chip memory do not.
    """
    program = Program(text)
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


def _touched(i: Instruction, shapes: dict[str, str], inner: list[Instruction]) -> int:
    """Bytes of an instruction's operands and result; of what `inner` only slices or updates, the slices."""
    operands = operand_names(i)
    if inner == [i]:
        names = dict(enumerate(operands))
        within = shapes
    else:
        names = {int(p.operands): p.name for p in inner if p.opcode == "parameter"}
        within = {p.name: p.shape for p in inner}
    result, total = _off_chip(i.shape), 0
    on_the_way = [p for p in inner if p is not i and is_later_part(p, inner)]
    if on_the_way:  # what it has received is counted with its first part
        carried = {p.name for p in on_the_way}
        handed_on = [n for n in operand_names(inner[-1]) if n in carried | set(names.values())]
        result -= sum(_off_chip(within[n]) for n in handed_on)
    for number, operand in enumerate(operands):
        size = _off_chip(shapes.get(operand, ""))
        users = [p for p in inner if names.get(number) in operand_names(p)]
        if on_the_way and all(p in on_the_way or p is inner[-1] for p in users):
            continue
        slices = [p for p in users if p.opcode == "dynamic-slice"]
        updates = [
            p
            for p in users
            if p.opcode == "dynamic-update-slice" and operand_names(p)[0] == names[number]
        ]
        if users and len(slices) + len(updates) == len(users):
            part = sum(size_of(p.shape) for p in slices)
            for update in updates:  # in place: the rest is neither read nor written
                changed = size_of(within[operand_names(update)[1]])
                part += changed
                result -= size_of(update.shape) - changed
            size = min(size, part)
        total += size
    return total + max(result, 0)


def _off_chip(shape: str) -> int:
    """Bytes of the arrays of a shape that are not in a TPU's on-chip memory, S(1)."""
    arrays = re.findall(r"\w+\[[\d,<=]*\](?:\{[^{}]*\})?", shape)
    return sum(size_of(a) for a in arrays if "S(1)" not in a)
