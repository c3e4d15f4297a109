"""From what a torch pickle holds to a `TensorFile`: tensors under dotted keys, plain values, modules."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.convert.files.pickles import Record, SetItems, Symbol
from clipjax.convert.files.tensor_file import (
    Refused,
    Tensor,
    TensorFile,
    check_key,
    check_shape,
    natural,
    shown,
)
from clipjax.convert.files.torch_objects import NumpyDtype, Storage, Strided

# A few bytes of pickle can name one list a thousand times in another: a walk over it is bounded.
MAX_VALUES = 300_000
MAX_DEPTH = 60

# State of the training that files carry at the top, beside the model: by open_clip, timm, Lightning, DeepSpeed.
TRAINING_STATE = frozenset(
    {
        "optimizer",
        "optimizer_state",
        "optimizer_state_dict",
        "optimizer_states",
        "optimizers",
        "opt",
        "scaler",
        "grad_scaler",
        "loss_scaler",
        "amp",
        "amp_scaler",
        "lr_scheduler",
        "lr_schedulers",
        "scheduler",
        "scheduler_state_dict",
        "callbacks",
        "loops",
        "rng_state",
        "random_state",
    }
)

# (storage, first element, elements of this dtype) -> a flat view of the file
ReadStorage = Callable[[Storage, int, int, np.dtype], np.ndarray]


def _bytes_of(storage: Storage) -> int:
    if not natural(storage.count):
        raise Refused(f"has a malformed storage {shown(storage.key)}")
    return storage.count * storage.itemsize


def _tensor(key: str, value: Strided, read_storage: ReadStorage) -> Tensor:
    """Checks a tensor's place in its storage."""
    storage, dtype, offset, shape, strides = value
    size = check_shape(key, shape, dtype)
    if not (
        isinstance(strides, tuple | list)
        and len(strides) == len(shape)
        and all(natural(n) for n in (offset, *strides))
    ):
        raise Refused(f"has a malformed tensor {shown(key)}")
    shape, available = tuple(shape), _bytes_of(storage) // dtype.itemsize
    if not size:
        return Tensor(shape, dtype, partial(np.empty, shape, dtype))
    # The stride of an axis of length 1 says nothing, and may be any number.
    steps = [step if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]
    extent = 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if offset + extent > available:
        raise Refused(f"has a tensor {shown(key)} that reaches outside its storage")
    if size > available:  # strides of 0 could fill the memory from a small file
        raise Refused(
            f"has an expanded tensor {shown(key)}, larger than its storage; save it after .contiguous()"
        )
    return Tensor(
        shape, dtype, partial(_read, read_storage, storage, offset, extent, shape, steps, dtype)
    )


def _read(
    read_storage: ReadStorage,
    storage: Storage,
    offset: int,
    extent: int,
    shape: tuple[int, ...],
    steps: list[int],
    dtype: np.dtype,
) -> np.ndarray:
    flat = read_storage(storage, offset, extent, dtype)
    step_bytes = [step * dtype.itemsize for step in steps]
    # Not as_strided: it asks for the name of the dtype, and numpy has none for float8.
    view = np.ndarray(shape, dtype, flat.view(np.uint8), 0, step_bytes)
    return view if view.flags.c_contiguous else view.copy(order="C")


class _Walk:
    """Collects tensors and plain values of a nested value, within bounds."""

    def __init__(self, check_storage: Callable[[Storage], None], read_storage: ReadStorage):
        self.tensors: dict[str, Tensor] = {}
        self.dicts: list[str] = []
        self._check_storage = check_storage
        self._read_storage = read_storage
        self._visited = 0

    def tensor(self, key: str, value: Strided) -> None:
        check_key(key, len(self.tensors))
        if key in self.tensors:
            raise Refused(f"has two tensors with the key {shown(key)}")
        self.tensors[key] = _tensor(key, value, self._read_storage)
        self._check_storage(value.storage)

    def visit(self, depth: int) -> None:
        self._visited += 1
        if self._visited > MAX_VALUES or depth > MAX_DEPTH:
            raise Refused("has values that are nested too deeply, or name each other too often")

    def plain(self, key: str, value: Any, depth: int) -> Any:
        """The value without the tensors in it, which are collected under keys that begin with `key`."""
        self.visit(depth)
        if value is None or type(value) in (str, int, float, bool, bytes):
            return value
        if type(value) in (Symbol, NumpyDtype):
            return value.name if type(value) is Symbol else value.code
        if type(value) is Record and value.name == "argparse.Namespace":
            value = value.fields
        if type(value) is dict:
            return self.mapping(key, value, depth)
        if type(value) in (list, tuple, SetItems):
            return self._sequence(key, value, depth)
        if type(value) is Storage:
            raise Refused(f"holds a storage without a tensor, {shown(key)}; save tensors instead")
        raise Refused(f"holds an object at {shown(key)} that is not a plain value")

    def mapping(self, key: str, items: dict[Any, Any], depth: int) -> dict[Any, Any]:
        """`plain` of a dict; notes it in `dicts` if there are tensors in it."""
        before, kept = len(self.tensors), {}
        for name, value in items.items():
            full = f"{key}.{name}" if key else str(name)
            if type(value) is Strided:
                if type(name) not in (str, int):
                    raise Refused("has a tensor whose key is no string")
                self.tensor(full, value)
            else:
                # A key of any length would be copied once for each value below it.
                kept[name] = self.plain(full[:2000], value, depth + 1)
        if key and len(self.tensors) > before:
            self.dicts.append(key)
        return kept

    def _sequence(self, key: str, items: Any, depth: int) -> Any:
        kept = []
        for index, value in enumerate(items):
            full = f"{key}.{index}"
            if type(value) is Strided:
                self.tensor(full, value)
            else:
                kept.append(self.plain(full, value, depth + 1))
        if type(items) is tuple:
            return tuple(kept)
        hashable = all(value is None or type(value) in (str, int, float, bool) for value in kept)
        return set(kept) if type(items) is SetItems and hashable else kept

    def module(self, key: str, record: Record, depth: int) -> None:
        """The tensors of a TorchScript module and of the modules in it."""
        for name, value in record.fields.items():
            self.visit(depth)
            full = f"{key}.{name}" if key else name
            if type(value) is Strided:
                self.tensor(full, value)
            elif type(value) is Record:
                check_key(full, len(self.tensors))
                self.module(full, value, depth + 1)


def from_dict(
    path: Path,
    kind: str,
    value: Any,
    check_storage: Callable[[Storage], None],
    read_storage: ReadStorage,
) -> TensorFile:
    """The file whose pickle holds a (nested) dict.

    Args:
        path, kind: of the file.
        value: what the pickle holds.
        check_storage: raises Refused if the file does not have a storage as it is described.
        read_storage: reads elements of one.

    Raises:
        Refused: it is no dict, or a tensor's description is a lie.
    """
    if type(value) is not dict:
        raise Refused("holds no dict of tensors; save a state_dict()")
    skipped = [
        name
        for name, entry in value.items()
        if name in TRAINING_STATE and type(entry) in (dict, list)
    ]
    walk = _Walk(check_storage, read_storage)
    rest = {name: entry for name, entry in value.items() if name not in skipped}
    other = walk.mapping("", rest, 0)
    return TensorFile(
        path, kind, walk.tensors, other, dicts=tuple(walk.dicts), skipped=tuple(skipped)
    )


def from_module(
    path: Path, value: Any, check_storage: Callable[[Storage], None], read_storage: ReadStorage
) -> TensorFile:
    """The TorchScript archive whose pickle holds a module; arguments and errors as for `from_dict`."""
    if type(value) is not Record:
        raise Refused("is a TorchScript archive that holds no module")
    walk = _Walk(check_storage, read_storage)
    walk.module("", value, 0)
    other = {
        name: entry
        for name, entry in value.fields.items()
        if entry is None or type(entry) in (str, int, float, bool)
    }
    return TensorFile(path, "torchscript", walk.tensors, other)


def check_bytes(storage: Storage, size: int) -> None:
    """Refuses a storage for which the file has another number of bytes.

    Args:
        storage: as the pickle describes it.
        size: bytes that the file has for it.
    """
    expected = _bytes_of(storage)
    if size != expected:
        raise Refused(
            f"has {size} bytes for the storage {shown(storage.key)} instead of {expected}"
        )
