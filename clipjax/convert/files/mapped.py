"""A file in memory by mapping: bytes are read from the disk when they are looked at."""

import mmap
import stat
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.convert.files.tensor_file import Refused
from clipjax.errors import UserError


class MappedFile:
    """A file's bytes, read-only.

    Args:
        path: a regular file on a local disk.

    Raises:
        UserError: it is something else, empty, or unreadable.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if "://" in str(path):
            raise UserError(f"{path} is not on a local disk; copy it to one first.")
        try:
            mode = self.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise UserError(f"{path} is a directory; name a weight file in it.")
            if not stat.S_ISREG(mode):  # Opening a pipe would wait for ever.
                raise UserError(f"{path} is not a regular file.")
            with self.path.open("rb") as file:
                if not file.seek(0, 2):
                    raise UserError(f"{path} is empty.")
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{str(path)!r} cannot be read: {reason}.") from error

    def __len__(self) -> int:
        return len(self.bytes)

    def take(self, start: int, size: int) -> bytes:
        """A copy of `size` bytes.

        Raises:
            Refused: the file ends before.
        """
        if start < 0 or size < 0 or start + size > len(self.bytes):
            raise Refused("is truncated")
        return self.bytes[start : start + size]

    def array(self, start: int, dtype: np.dtype, count: int) -> np.ndarray:
        """A read-only [count] view of the file, or a copy where the processor would find it unaligned.

        Raises:
            Refused: the file ends before.
        """
        if start < 0 or count < 0 or start + count * dtype.itemsize > len(self.bytes):
            raise Refused("is truncated")
        if not count:
            return np.empty(0, dtype)
        array = np.frombuffer(self.bytes, dtype, count, start)
        return array if array.flags.aligned else array.copy()


def let_go(array: np.ndarray) -> None:
    """Takes a view of a mapped file out of this process's memory; looked at again, it is read again.

    Arrays that are no such views are left alone.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not array.nbytes:
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    origin = np.frombuffer(owner, np.uint8, 1).ctypes.data
    start = (low - origin) // mmap.PAGESIZE * mmap.PAGESIZE
    owner.madvise(mmap.MADV_DONTNEED, start, high - origin - start)
