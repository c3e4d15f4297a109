"""What `torch.save` wrote before 1.6, and writes with `_use_new_zipfile_serialization=False`.

The file is no zip archive but four pickles (magic number, protocol, system information, the values with storages as
persistent ids), a pickled list of the storages' keys, and for each of them an int64 count and the raw numbers.
"""

import struct
from typing import Any

import numpy as np

from clipjax.convert.files import torch_tree
from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.pickles import Machine
from clipjax.convert.files.tensor_file import Refused, TensorFile, shown
from clipjax.convert.files.torch_objects import SYMBOLS, Storage, persistent

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
FIRST_BYTES = (
    b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
)  # after the protocol, \x80 and a byte


class _Recorder:
    """Remembers every storage that the pickle mentions: they lie one behind the other."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}

    def __call__(self, pid: Any) -> Storage:
        storage = persistent(pid)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Refused(f"describes the storage {shown(storage.key)} in two ways")
        return storage


def open_legacy(file: MappedFile) -> TensorFile:
    """Opens a file that begins with the magic number.

    Raises:
        Refused: truncated, longer or shorter than it says, a tensor that reaches outside its storage, or anything but
            tensors and plain values in the pickles.
    """
    recorder = _Recorder()
    position = 0

    def load() -> Any:
        nonlocal position
        machine = Machine(file.bytes, position, SYMBOLS, recorder)
        value = machine.load()
        position = machine.position
        return value

    magic, protocol, system, value, keys = (load() for _ in range(5))
    if magic != MAGIC or protocol != PROTOCOL:
        raise Refused("does not begin with torch's magic number and protocol")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Refused("was not written on a little-endian machine; save it anew on one")
    starts = _starts(file, position, keys, recorder.storages)

    def check_storage(storage: Storage) -> None:
        """All of them have been checked."""

    def read_storage(storage: Storage, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
        return file.array(starts[storage.key] + offset * dtype.itemsize, dtype, count)

    return torch_tree.from_dict(file.path, "torch_legacy", value, check_storage, read_storage)


def _starts(
    file: MappedFile, position: int, keys: Any, storages: dict[str, Storage]
) -> dict[str, int]:
    """Where the numbers of each storage begin; refuses if they do not fill the file exactly."""
    listed = type(keys) is list and all(type(key) is str for key in keys)
    if not listed or sorted(keys) != sorted(storages):
        raise Refused("has a list of storages that is not that of its tensors")
    starts = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.take(position, 8))
        starts[key] = position + 8
        if count < 0:
            raise Refused(f"has a malformed storage {shown(key)}")
        torch_tree.check_bytes(storages[key], count * storages[key].itemsize)
        position += 8 + count * storages[key].itemsize
        if position > len(file):
            raise Refused("is truncated")
    if position != len(file):
        raise Refused(f"has {len(file) - position} bytes after its last storage")
    return starts
