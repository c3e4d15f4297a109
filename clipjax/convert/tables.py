"""Declarative, bijective key tables between a checkpoint format's tensors and Flax parameters.

A table is a list of rows (source key, target path, layout). `{i}` and the like stand for a number on both sides. The
layers of a tower, and the experts of a mixture, are stacked along the leading axes of one array here; a row names one
of them by the number after `blocks` or `experts`: `image/transformer/blocks/{i}/mlp/fc_in/kernel` is layer i of
`image/transformer/blocks/mlp/fc_in/kernel`. Without the number it means the whole stack.

Reading refuses unless every source key is consumed or listed as droppable and every parameter is supplied in its shape,
and names all that does not fit. Writing is the same table read from right to left. Both go parameter by parameter, so
that no more than one (stack) of them is in memory beside what the caller keeps.
"""

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clipjax.convert.files import Tensor
from clipjax.convert.files.mapped import let_go
from clipjax.convert.layouts import AS_IS, Layout, fill
from clipjax.errors import UserError

STACKED = ("blocks", "experts")

_PLACEHOLDER = re.compile(r"\{(\w+)\}")

# How many names an error shows in full of each kind.
SHOWN = 200


@dataclass(frozen=True)
class Row:
    """One kind of tensor.

    Attributes:
      source: its key in the source.
      target: its path (`a/b`) in the parameters; of several, the source is their concatenation along its first axis.
      layout: between the two.
      select: index into the target (the layer's, where it is stacked): the source is only this part of it.
      first: what is added to the number `{i}` on the source's side.
    """

    source: str
    target: str | tuple[str, ...]
    layout: Layout = AS_IS
    select: tuple[Any, ...] = ()
    first: int = 0

    @property
    def targets(self) -> tuple[str, ...]:
        """All target paths."""
        return (self.target,) if isinstance(self.target, str) else self.target


@dataclass(frozen=True)
class Zero:
    """A part of a parameter that the source leaves out because it is zero there, such as the bias of keys in EVA."""

    target: str
    select: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Slot:
    """A part of a parameter: the array at `path`, indexed by `index`."""

    path: str
    index: tuple[Any, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A source key, the slots whose concatenation it is, and how each is laid out there."""

    key: str
    slots: tuple[Slot, ...]
    layout: Layout

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor in the source."""
        shapes = [self.layout.source_shape(slot.shape) for slot in self.slots]
        if len(shapes) == 1:
            return shapes[0]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True)
class KeyTable:
    """The rows of one format.

    Attributes:
      what: what the source holds, for error messages.
      rows: source and target of a row must have the same placeholders.
      droppable: source keys, with placeholders, that carry nothing that the model uses.
      zeros: what the source leaves out.
      written: source keys that carry nothing but that the format's own loader wants: key -> array.
    """

    what: str
    rows: tuple[Row, ...]
    droppable: tuple[str, ...] = ()
    zeros: tuple[Zero, ...] = ()
    written: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Given as lists in the formats, where they are put together.
        for name in ("rows", "droppable", "zeros"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for row in self.rows:
            for target in row.targets:
                if set(_PLACEHOLDER.findall(row.source)) != set(_PLACEHOLDER.findall(target)):
                    raise ValueError(f"{row.source} and {target} differ in their placeholders")

    def without(self, prefixes: tuple[str, ...]) -> "KeyTable":
        """The same table for a source whose keys lack these prefixes."""

        def short(key: str) -> str:
            return next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)

        return dataclasses.replace(
            self,
            rows=tuple(dataclasses.replace(row, source=short(row.source)) for row in self.rows),
            droppable=tuple(map(short, self.droppable)),
            written={short(key): array for key, array in self.written.items()},
        )

    def drops(self, key: str) -> bool:
        """Whether a source key is known and carries nothing that the model uses."""
        return any(pattern.fullmatch(key) for pattern in self._droppable)

    @functools.cached_property
    def _droppable(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_pattern(template) for template in (*self.droppable, *self.written))

    def entries(self, expected: Any) -> dict[str, Entry]:
        """Every source key of a model whose parameters have the shapes of `expected`, in the order of the parameters.

        Raises:
          UserError: parameters, or parts of them, that the format has no key for; all are named.
        """
        wanted = {path: tuple(leaf.shape) for path, leaf in flatten_dict(expected, sep="/").items()}
        names = _all_names(wanted)
        filled = dict.fromkeys(wanted, 0)
        zero = dict.fromkeys(wanted, 0)
        entries: dict[str, Entry] = {}
        for row in self.rows:
            patterns = [_pattern(target) for target in row.targets]
            for name in names:
                match = patterns[0].fullmatch(name)
                if not match:
                    continue
                numbers = match.groupdict()
                slots = tuple(
                    _slot(names, wanted, target.format(**numbers), row.select)
                    for target in row.targets
                )
                if None in slots:
                    continue
                shifted = {k: int(n) + (row.first if k == "i" else 0) for k, n in numbers.items()}
                key = row.source.format(**shifted)
                if key in entries:
                    raise ValueError(f"two rows of {self.what} give the key {key}")
                entries[key] = Entry(key, slots, row.layout)
                for slot in slots:
                    filled[slot.path] += _size(slot.shape)
        for zeros in self.zeros:
            pattern = _pattern(zeros.target)
            for name in names:
                if pattern.fullmatch(name):
                    slot = _slot(names, wanted, name, zeros.select)
                    zero[slot.path] += _size(slot.shape)
        without = [p for p, shape in wanted.items() if filled[p] + zero[p] != _size(shape)]
        if without:
            raise UserError(f"{_sentence(self.what)} has no place for {_listed(without)}.")
        place = {path: i for i, path in enumerate(wanted)}
        return dict(sorted(entries.items(), key=lambda item: place[item[1].slots[0].path]))

    def left_out(self, expected: Any) -> list[Slot]:
        """The slots that `zeros` names."""
        wanted = {path: tuple(leaf.shape) for path, leaf in flatten_dict(expected, sep="/").items()}
        names = _all_names(wanted)
        return [
            _slot(names, wanted, name, zeros.select)
            for zeros in self.zeros
            for name in names
            if _pattern(zeros.target).fullmatch(name)
        ]

    def check(self, tensors: Mapping[str, Any], expected: Any) -> dict[str, Entry]:
        """The entries of `expected`, if the tensors are theirs and nothing else.

        Raises:
          UserError: unknown keys, missing keys, wrong shapes or kinds of number; all are named.
        """
        entries = self.entries(expected)
        unknown = [key for key in tensors if key not in entries and not self.drops(key)]
        missing = [key for key in entries if key not in tensors]
        wrong = []
        for key, entry in entries.items():
            if key not in tensors:
                continue
            shape, dtype = tuple(tensors[key].shape), tensors[key].dtype
            if shape != entry.shape:
                wrong.append(f"{key} is {list(shape)} instead of {list(entry.shape)}")
            elif not jnp.issubdtype(dtype, np.floating):
                wrong.append(f"{key} is {dtype} instead of a floating type")
        kinds = (("missing", missing), ("unknown", unknown), ("wrong", wrong))
        parts = [f"{label}: {_listed(names)}" for label, names in kinds if names]
        if parts:
            raise UserError(f"This is not {self.what}; {'; '.join(parts)}.")
        return entries

    def leaves(self, tensors: Mapping[str, Any], expected: Any) -> dict[str, Tensor]:
        """The parameters of a source, path -> tensor that is put together when it is read, in the source's dtype.

        Args:
          tensors: every tensor of the source, key -> numpy array or `Tensor`.
          expected: the parameters' tree of things with a shape (of `jax.eval_shape`, unboxed).

        Raises:
          UserError: see `check`.
        """
        by_path: dict[str, list[tuple[Entry, int]]] = {}
        for entry in self.check(tensors, expected).values():
            for part, slot in enumerate(entry.slots):
                by_path.setdefault(slot.path, []).append((entry, part))

        def read(path: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            array = np.zeros(shape, dtype)

            def place(part: tuple[Entry, int]) -> None:
                entry, number = part
                slot, whole = entry.slots[number], _read(tensors[entry.key])
                laid = entry.layout.forward(_share(whole, entry, number), slot.shape)
                fill(array[(*slot.index, ...)], laid)
                let_go(whole)

            # The layers of a stack side by side: copying is what takes the time.
            list(threads().map(place, by_path[path]))
            return array

        result = {}
        for path, leaf in flatten_dict(expected, sep="/").items():
            # The layers of a stack may differ in the source; the widest holds all of them exactly.
            kinds = {np.dtype(tensors[entry.key].dtype) for entry, _ in by_path[path]}
            dtype = np.dtype(functools.reduce(jnp.promote_types, kinds))
            shape = tuple(leaf.shape)
            result[path] = Tensor(shape, dtype, functools.partial(read, path, shape, dtype))
        return result

    def to_params(self, tensors: Mapping[str, Any], expected: Any) -> dict[str, Any]:
        """Flax parameters from source tensors, in the shapes and dtypes of `expected`.

        Raises:
          UserError: see `check`.
        """
        wanted = flatten_dict(expected, sep="/")
        leaves = self.leaves(tensors, expected)
        return unflatten_dict(
            {p: x.read().astype(wanted[p].dtype) for p, x in leaves.items()}, sep="/"
        )

    def tensors(self, params: Mapping[str, Any]) -> dict[str, Tensor]:
        """Source tensors of parameters, the inverse of `leaves`: key -> tensor that is made when it is read.

        Read in their order, they read each parameter once.

        Args:
          params: path -> numpy array or `Tensor`.

        Raises:
          UserError: parameters that the format has no key for, or (when the tensor is read) parts that it takes for
            zero and are not.
        """
        newest = functools.lru_cache(maxsize=1)(lambda path: _read(params[path]))
        left_out = self.left_out(params)

        def read(entry: Entry, dtype: np.dtype) -> np.ndarray:
            parts = []
            for slot in entry.slots:
                array = newest(slot.path)
                if any(np.any(array[zero.index]) for zero in left_out if zero.path == slot.path):
                    raise UserError(
                        f"{_sentence(self.what)} takes a part of {slot.path} for zero, and here it is not."
                    )
                parts.append(entry.layout.inverse(array[slot.index]))
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            result = np.empty(entry.shape, dtype)
            fill(result, whole)
            return result

        result = {}
        for key, entry in self.entries(params).items():
            dtype = np.dtype(params[entry.slots[0].path].dtype)
            result[key] = Tensor(entry.shape, dtype, functools.partial(read, entry, dtype))
        kinds = {tensor.dtype for tensor in result.values()}
        for key, array in self.written.items():
            # A loader may take the first tensor's dtype for the model's.
            if len(kinds) == 1 and jnp.issubdtype(array.dtype, np.floating):
                array = array.astype(*kinds)
            result[key] = Tensor(array.shape, array.dtype, functools.partial(np.asarray, array))
        return result

    def from_params(self, params: Any) -> dict[str, np.ndarray]:
        """Source tensors from Flax parameters: the inverse of `to_params`, without droppable keys.

        Raises:
          UserError: parameters that the format has no key for; all are named.
        """
        return {
            key: tensor.read()
            for key, tensor in self.tensors(flatten_dict(params, sep="/")).items()
        }


@functools.cache
def threads() -> ThreadPoolExecutor:
    """One for each core, for the whole process."""
    return ThreadPoolExecutor(os.cpu_count(), "clipjax-tables")


def _read(tensor: Any) -> np.ndarray:
    return tensor if isinstance(tensor, np.ndarray) else tensor.read()


def _share(whole: np.ndarray, entry: Entry, part: int) -> np.ndarray:
    """The source's share of one slot."""
    if len(entry.slots) == 1:
        return whole
    rows = [entry.layout.source_shape(slot.shape)[0] for slot in entry.slots]
    start = sum(rows[:part])
    return whole[start : start + rows[part]]


@functools.lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression for a key; a placeholder that comes twice must have one number."""
    seen: set[str] = set()
    pattern = ""
    for index, piece in enumerate(_PLACEHOLDER.split(template)):
        if index % 2 == 0:
            pattern += re.escape(piece)
        elif piece in seen:
            pattern += f"(?P={piece})"
        else:
            pattern += rf"(?P<{piece}>0|[1-9][0-9]*)"
            seen.add(piece)
    return re.compile(pattern)


def _names(path: str, shape: tuple[int, ...]) -> Iterable[tuple[str, tuple[int, ...]]]:
    """All names that rows may use for a parameter and its layers and experts, with their index."""
    parts = path.split("/")
    places = [place + 1 for place, part in enumerate(parts[:-1]) if part in STACKED]
    for depth in range(len(places) + 1):
        for index in itertools.product(*(range(n) for n in shape[:depth])):
            named = list(parts)
            for place, number in reversed(list(zip(places, index, strict=False))):
                named.insert(place, str(number))
            yield "/".join(named), index


def _all_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (path, index), over all parameters."""
    return {name: (p, index) for p, shape in shapes.items() for name, index in _names(p, shape)}


def _slot(
    names: Mapping[str, tuple[str, tuple[int, ...]]],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    select: tuple[Any, ...],
) -> Slot | None:
    if name not in names:
        return None
    path, index = names[name]
    index = (*index, *select)
    return Slot(path, index, np.broadcast_to(False, shapes[path])[index].shape)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _sentence(what: str) -> str:
    return what[0].upper() + what[1:]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
