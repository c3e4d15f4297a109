"""A compiled program's text, taken apart: its instructions, the shapes they work on, and how often each runs."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

# Bits of an element; everything else of a shape is in its text.
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0, "c64": 64, "c128": 128}


class Instruction(NamedTuple):
    """One line of a computation: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str


class Program:
    """Computations of a module, and how often each runs."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
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

    def calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
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

    def _trips(self, loop: Instruction) -> int:
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

    def _closure(self, name: str) -> Iterator[Instruction]:
        for instruction in self.computations[name]:
            yield instruction
            for called, _ in self.calls(instruction):
                yield from self._closure(called)

    def running(self) -> Iterator[tuple[Instruction, dict[str, str], int, str]]:
        """(instruction, shapes of its computation by name, how often it runs, its computation)."""
        for name, instructions in self.computations.items():
            if self.times[name]:
                shapes = {i.name: i.shape for i in instructions}
                for instruction in instructions:
                    yield instruction, shapes, self.times[name], name


def _read(line: str) -> Instruction | None:
    """`  %name = shape opcode(operands), attributes`."""
    match = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing("(" + rest) - 1
    return Instruction(match[1], shape, opcode, rest[:end], rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the bracket that `text` begins with is closed."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if not depth:
            return position
    raise ValueError(f"A bracket is not closed in {text[:80]!r}.")


def operand_names(i: Instruction) -> list[str]:
    """What an instruction works on."""
    return re.findall(r"%([\w.\-]+)", i.operands)


def op_name(i: Instruction) -> str:
    """Where it comes from, as JAX named it; "" if XLA did not keep it."""
    return (re.search(r'op_name="([^"]*)"', i.attributes) or ["", ""])[1]


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
    """(element type, dimensions) of each array of a shape; layouts are not read."""
    plain = re.sub(r"\{[^{}]*\}", "", shape)
    return [(kind, integers(dims)) for kind, dims in re.findall(r"(\w+)\[([\d,<=]*)\]", plain)]


def dimensions(shape: str) -> list[int]:
    """Of a shape's first array."""
    return _arrays(shape)[0][1]


def size_of(shape: str) -> int:
    """Bytes of all arrays of a shape."""
    total = 0
    for kind, dims in _arrays(shape):
        bits = _BITS[kind] if kind in _BITS else int(re.search(r"\d+", kind)[0])
        total += math.prod(dims) * bits // 8
    return total


def integers(text: str) -> list[int]:
    """All whole numbers in a text."""
    return [int(t) for t in re.findall(r"\d+", text)]
