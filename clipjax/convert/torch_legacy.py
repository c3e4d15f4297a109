"""Reads a state dict in torch's legacy file format (before torch 1.6), without torch.

The file is no zip archive but four pickles (magic number, protocol, system information, the state
dict with storages as persistent ids), a pickled list of the storages' keys, and for each of them an
int64 count and the raw numbers. Pickles can run code, so only an ordered dict of tensors is
understood: any other global is refused before it is looked up.
"""

import io
import math
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clipjax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    """A run of numbers that the file holds after the pickles."""

    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuild:
    """Stands for `torch._utils._rebuild_tensor_v2`; has no attributes that a pickle could set."""

    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *unused: Any
    ) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle._Unpickler):
    """Understands what a state dict of tensors is made of, and nothing else.

    It is the Python one, whose memo is a dict: the memo of the one in C is an array, and one
    flipped bit of a file can make that ask for 64 GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Called for every global of the pickle, before anything is done with it."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch" and name in STORAGES:
            return name  # A string can be neither called nor given a state.
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        """Called for every mention of a storage."""
        kind, storage, key, _, count, view = pid
        if kind != "storage" or storage not in STORAGES or view is not None:
            raise pickle.UnpicklingError("a persistent id is not that of a plain storage")
        return _Storage(key, STORAGES[storage], count)


def read_legacy(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Args:
        path: the file (`.pth`, `.pt`).

    Returns:
        Key -> array in C order, each a copy; non-contiguous tensors are laid out anew.

    Raises:
        UserError: not such a file, truncated, longer or shorter than it says, a tensor that reaches
            outside its storage, or anything but tensors in the state dict.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if data[:4] == b"PK\x03\x04":
        raise UserError(f"{path} is a zip archive, not a file in torch's legacy format.")
    stream = io.BytesIO(data)
    try:
        state, keys = _read_pickles(stream)
        tensors = _tensors(state)
        return _read_arrays(tensors, keys, memoryview(data), stream.tell())
    except _Refused as error:
        raise UserError(f"{path} is not a whole legacy torch state dict: {error}.") from error


class _Refused(Exception):
    """Why a file is not read."""


def _read_pickles(stream: io.BytesIO) -> tuple[Any, Any]:
    """The state dict and the list of storage keys; leaves the stream where the numbers begin."""
    try:
        magic = _Unpickler(stream).load()
        protocol = _Unpickler(stream).load() if magic == MAGIC else None
        if protocol != PROTOCOL:
            raise pickle.UnpicklingError("it does not begin with the magic number and protocol")
        if _Unpickler(stream).load()["little_endian"] is not True:
            raise pickle.UnpicklingError("it was not written on a little-endian machine")
        return _Unpickler(stream).load(), _Unpickler(stream).load()
    except Exception as error:  # A hostile pickle may raise anything at all.
        raise _Refused(str(error) or type(error).__name__) from error


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensors(state: Any) -> dict[str, _Tensor]:
    """Checks the unpickled state dict, its tensors' places included."""
    if not isinstance(state, dict):
        raise _Refused("it holds no state dict")
    tensors: dict[str, _Tensor] = {}
    for key, value in dict.items(state):  # A pickle can give the dict an attribute `items`.
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            raise _Refused(f"its entry {key if isinstance(key, str) else type(key)} is no tensor")
        storage, offset, shape, strides = value
        whole = (
            isinstance(storage.key, str)
            and isinstance(shape, tuple)
            and isinstance(strides, tuple)
            and len(shape) == len(strides) <= 32
            and all(_natural(n) for n in (storage.count, offset, *shape, *strides))
        )
        if not whole or 0 in shape:
            raise _Refused(f"the tensor {key} is malformed or empty")
        size = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        # More elements than the storage has (strides of 0) could fill the memory from a small file.
        if size > storage.count or last >= storage.count:
            raise _Refused(f"the tensor {key} reaches outside its storage")
        tensors[key] = value
    return tensors


def _read_arrays(
    tensors: dict[str, _Tensor], keys: Any, data: memoryview, position: int
) -> dict[str, np.ndarray]:
    """Cuts the storages out of `data` from `position` on, and the tensors out of the storages."""
    storages: dict[str, _Storage] = {}
    for tensor in tensors.values():
        if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise _Refused(f"the storage {tensor.storage.key} is described in two ways")
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or sorted(keys) != sorted(storages):
        raise _Refused("its list of storages is not that of its tensors")
    flat: dict[str, np.ndarray] = {}
    for key in keys:
        _, dtype, count = storages[key]
        end = position + 8 + count * dtype.itemsize
        if end > len(data):
            raise _Refused("it is truncated")
        if struct.unpack_from("<q", data, position)[0] != count:
            raise _Refused(f"the storage {key} is not as long as its tensors say")
        flat[key] = np.frombuffer(data, dtype, count, position + 8)
        position = end
    if position != len(data):
        raise _Refused(f"{len(data) - position} bytes follow its last storage")
    arrays = {}
    for name, (storage, offset, shape, strides) in tensors.items():
        # The stride of an axis of length 1 says nothing, and may be any number.
        steps = [step if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]
        steps = [step * storage.dtype.itemsize for step in steps]
        view = np.lib.stride_tricks.as_strided(flat[storage.key][offset:], shape, steps)
        arrays[name] = view.copy(order="C")
    return arrays
