"""Writes `.pt` files as `torch.save` lays out a dict of tensors, tensor by tensor and without torch."""

import os
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from clipjax.errors import UserError

Rows = Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]

# What torch calls an array without a shape, by dtype.
_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
}
_ALIGNMENT = 64  # of each array in the file, so that torch can map it into memory


def write_torch(path: str | Path, tensors: Rows) -> list[Path]:
    """Writes what `torch.load(path, weights_only=True)` reads, uncompressed, with one tensor in memory at a time.

    Args:
      path: does not exist yet.
      tensors: (key, shape, dtype, function that gives the array).

    Raises:
      UserError: the file exists or cannot be written. No part of it is left then.
    """
    path, rows = Path(path), list(tensors)
    if path.exists():
        raise UserError(f"{str(path)!r} exists already; remove it, or choose another name.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _member(archive, "data.pkl", _pickle(rows))
            _member(archive, "byteorder", b"little")
            for number, (_, shape, dtype, read) in enumerate(rows):
                array = np.asarray(read(), np.dtype(dtype).newbyteorder("<"), order="C")
                if array.shape != shape:
                    raise ValueError(f"a tensor of shape {array.shape}, announced as {shape}")
                _member(archive, f"data/{number}", array.reshape(-1).view(np.uint8).data)
            _member(archive, "version", b"3\n")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return [path]


def _member(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Adds a member whose content begins at a multiple of `_ALIGNMENT`: its header is filled up with an extra field."""
    info = zipfile.ZipInfo(f"archive/{name}")
    # A local header: 30 bytes, the name, 20 bytes of zip64, and ours: 4 bytes and the filling.
    start = archive.fp.tell() + 30 + len(info.filename) + 20 + 4
    fill = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", fill) + b"Z" * fill
    with archive.open(info, "w", force_zip64=True) as member:
        member.write(content)


def _pickle(rows: list[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]) -> bytes:
    """Protocol 2, written opcode by opcode: a dict of calls that torch makes tensors of."""
    parts = [b"\x80\x02}("]
    for number, (key, shape, dtype, _) in enumerate(rows):
        if np.dtype(dtype).name not in _STORAGES:
            raise UserError(
                f"{key} is {np.dtype(dtype).name}, which torch's files have no name for."
            )
        storage = _global("torch", _STORAGES[np.dtype(dtype).name])
        count = int(np.prod(shape, dtype=np.int64))
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
        parts += [
            _text(key),
            _global("torch._utils", "_rebuild_tensor_v2"),
            b"((",  # its arguments: the storage, which torch finds by this tuple,
            *(_text("storage"), storage, _text(str(number)), _text("cpu"), _number(count)),
            b"tQ",
            *(_number(0), _tuple(shape), _tuple(strides)),  # where it begins there, its shape
            b"\x89" + _global("collections", "OrderedDict") + b")R",  # no gradient, no hooks
            b"tR",
        ]
    return b"".join([*parts, b"u."])


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
