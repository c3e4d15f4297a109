"""ArrayRecord files of clipjax's own records: the fastest to read at random, and what `clipjax data convert` writes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from clipjax.data.bad import BadRecord
from clipjax.data.sources.files import expand
from clipjax.data.sources.rows import record
from clipjax.errors import UserError

_ARRAY = 1  # msgpack's extension type of a NumPy array


class ArrayRecords:
    """Records that `write` has written; each is a msgpack map of the fields of a raw record.

    Args:
      files: paths or patterns, see `files.expand`.
      image, text, language: fields of images, captions and language tags, see `rows.record`.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        image: str | bool | None = None,
        text: str | Sequence[str] | None = None,
        language: str | None = None,
    ):
        paths = expand(files, "ArrayRecord file")
        try:
            self._source = ArrayRecordDataSource(paths)
            self._length = len(self._source)
        except Exception as error:  # whatever its C++ says of a file that is none
            raise UserError(f"{files!r} cannot be read as ArrayRecord: {error}.") from error
        self._settings = (image, text, language)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            data = self._source[index]
        except RuntimeError as error:  # its C++ found that a checksum does not hold
            if "orrupted" not in str(error):
                raise
            raise BadRecord("file is damaged here") from error
        fields = decode(data)
        image, text, language = self._settings
        if text is None and "text" in fields:
            text = "text"  # of a raw record; another column's name may look like captions, too
        return record(fields, image, text, language)


def encode(fields: Mapping[str, Any]) -> bytes:
    """A raw record as bytes: strings, numbers, bytes, lists, maps, and arrays of numbers.

    Raises:
      UserError: something else.
    """
    try:
        return msgpack.packb(dict(fields), default=_pack)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"A record cannot be written: {error}.") from error


def decode(data: bytes) -> dict[str, Any]:
    """The inverse of `encode`.

    Raises:
      BadRecord: bytes that are no record.
    """
    try:
        found = msgpack.unpackb(data, ext_hook=_unpack)
    except Exception as error:
        raise BadRecord("record is not a msgpack map") from error
    if not isinstance(found, dict):
        raise BadRecord("record is not a msgpack map")
    return found


def write(records: Iterable[Mapping[str, Any]], path: str | Path) -> int:
    """Writes one file of records; it is there whole or not at all. Returns how many.

    One record a group, so that a random read decompresses nothing else; images are compressed already.
    """
    part, count = Path(f"{path}.part"), 0
    writer = ArrayRecordWriter(os.fspath(part), "group_size:1,uncompressed")
    try:
        for fields in records:
            writer.write(encode(fields))
            count += 1
    finally:
        writer.close()
    part.replace(path)
    return count


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        head = msgpack.packb([value.dtype.str, list(value.shape)])
        return msgpack.ExtType(_ARRAY, head + np.ascontiguousarray(value).tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} in it is neither text, number, bytes, list nor map")


def _unpack(code: int, data: bytes) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown type {code}")
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    dtype, shape = unpacker.unpack()
    return np.frombuffer(data, np.dtype(dtype), offset=unpacker.tell()).reshape(shape)
