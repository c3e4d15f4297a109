"""Reads the safetensors format: a length, a JSON header, and the tensors' bytes.

The library's numpy reader copies every tensor and knows no bfloat16, so the header is read here, with the checks of the
library (https://github.com/huggingface/safetensors, "Format"), and one that it does not make: no key may come twice.
"""

import json
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.tensor_file import (
    Refused,
    Tensor,
    TensorFile,
    check_key,
    check_shape,
    natural,
    shown,
)

MAX_HEADER = 100_000_000
# In the order in which the library lays tensors out, last first, so that each is aligned.
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}


def header_end(file: MappedFile) -> int | None:
    """Where the header of a file that begins like safetensors would end; None if it begins otherwise."""
    if len(file) < 10 or file.take(8, 1) != b"{":
        return None
    return 8 + int.from_bytes(file.take(0, 8), "little")


def open_safetensors(file: MappedFile) -> TensorFile:
    """Opens a file for which `header_end` is not None.

    Raises:
        Refused: the header is damaged or too long, or does not describe the rest of the file exactly.
    """
    start = header_end(file)
    if start > 8 + MAX_HEADER:
        raise Refused(f"has a header of more than {MAX_HEADER} bytes")
    header = parse_json(file.take(8, start - 8))
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        type(metadata) is dict and all(type(text) is str for text in metadata.values())
    ):
        raise Refused("has a header with malformed metadata")
    tensors: dict[str, Tensor] = {}
    places: list[tuple[int, int]] = []
    for key, entry in header.items():
        check_key(key, len(tensors))
        tensors[key], place = _tensor(file, key, entry, start)
        places.append(place)
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise Refused("has holes between its tensors, or tensors that overlap")
        end = last
    if start + end != len(file):
        verb = "is truncated" if start + end > len(file) else "is longer than it should be"
        raise Refused(f"{verb}: it has {len(file)} bytes, and its header speaks of {start + end}")
    return TensorFile(file.path, "safetensors", tensors, metadata=metadata or {})


def _tensor(file: MappedFile, key: str, entry: Any, start: int) -> tuple[Tensor, tuple[int, int]]:
    """The tensor and its first and last byte, counted from the end of the header."""
    if type(entry) is not dict:
        raise Refused(f"has a malformed entry for the tensor {shown(key)}")
    name, shape, place = (entry.get(part) for part in ("dtype", "shape", "data_offsets"))
    if type(name) is not str or name not in DTYPES:
        raise Refused(f"gives the tensor {shown(key)} the dtype {shown(name)}, which numpy has not")
    dtype = DTYPES[name]
    count = check_shape(key, shape, dtype)
    if type(place) is not list or len(place) != 2 or not all(natural(n) for n in place):
        raise Refused(f"has a malformed place for the tensor {shown(key)}")
    first, last = place
    if last - first != count * dtype.itemsize:
        raise Refused(
            f"has {last - first} bytes for the tensor {shown(key)} instead of {count * dtype.itemsize}"
        )
    read = partial(_read, file, start + first, tuple(shape), dtype, count)
    return Tensor(tuple(shape), dtype, read), (first, last)


def _read(
    file: MappedFile, start: int, shape: tuple[int, ...], dtype: np.dtype, count: int
) -> np.ndarray:
    return file.array(start, dtype, count).reshape(shape)


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("names something twice in its JSON")
    for pair in pairs:
        for text in pair:
            if type(text) is str:
                text.encode("utf-8")  # half a surrogate pair, as an escape, is none: a ValueError
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object, without duplicate keys at any depth.

    Raises:
        Refused: it is something else.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_checked,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise Refused("has damaged JSON in its header") from error
    if type(value) is not dict:
        raise Refused("has no JSON object in its header")
    return value
