"""Numpy's `.npz`: a zip archive of `.npy` files, as big_vision writes its checkpoints.

Keys are paths ("params/img/head/kernel"). numpy saves bfloat16 as a void type of two bytes, "|V2"; big_vision's
`recover_dtype` takes that for bfloat16, and so does this reader.
"""

import io
import math
from functools import partial

import ml_dtypes
import numpy as np

from clipjax.convert.files import zips
from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.tensor_file import (
    Refused,
    Tensor,
    TensorFile,
    check_key,
    check_shape,
    shown,
)
from clipjax.errors import UserError

SUFFIX = ".npy"
_MAX_HEADER = 10_000  # numpy's own limit for headers of unknown origin
_DTYPES = {
    *map(np.dtype, ("<f2", "<f4", "<f8", "<c8", "<c16")),
    *map(np.dtype, ("i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "?")),
}
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_npz(file: MappedFile, entries: dict[str, zips.Entry]) -> TensorFile:
    """Opens an archive in which every name ends in ".npy"; reads the arrays' headers alone.

    Raises:
        Refused: a header is damaged or not as long as its array, or an array is not of numbers.
    """
    tensors: dict[str, Tensor] = {}
    for entry in entries.values():
        key = entry.name.removesuffix(SUFFIX)
        check_key(key, len(tensors))
        tensors[key] = _tensor(file, key, entry)
    return TensorFile(file.path, "npz", tensors)


def _tensor(file: MappedFile, key: str, entry: zips.Entry) -> Tensor:
    stream = io.BytesIO(zips.head(file, entry, _MAX_HEADER + 12))
    try:
        version = np.lib.format.read_magic(stream)
        read_header = _HEADERS[version]
        shape, transposed, dtype = read_header(stream, max_header_size=_MAX_HEADER)
    except (
        Exception
    ) as error:  # The header is a Python literal, and numpy raises whatever it meets in it.
        raise Refused(f"has an array {shown(key)} with a damaged header") from error
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and not dtype.subdtype:
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif dtype not in _DTYPES:
        raise Refused(f"has an array {shown(key)} of {dtype.str}, which is no little-endian number")
    size = check_shape(key, shape, dtype) * dtype.itemsize
    start = stream.tell()
    if entry.size != start + size:
        raise Refused(
            f"has {entry.size - start} bytes for the array {shown(key)} instead of {size}"
        )
    return Tensor(shape, dtype, partial(_read, file, entry, start, shape, bool(transposed), dtype))


def _read(
    file: MappedFile,
    entry: zips.Entry,
    start: int,
    shape: tuple[int, ...],
    transposed: bool,
    dtype: np.dtype,
) -> np.ndarray:
    if entry.deflated:
        try:
            data = zips.inflated(file, entry)
        except Refused as error:
            raise UserError(f"{file.path} {error}.") from error
        flat = np.frombuffer(data, dtype, math.prod(shape), start)
    else:
        flat = file.array(entry.start + start, dtype, math.prod(shape))
    return np.ascontiguousarray(flat.reshape(shape[::-1]).T) if transposed else flat.reshape(shape)
