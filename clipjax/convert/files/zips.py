"""Zip archives as files of records: where each one lies, and its bytes."""

import zipfile
import zlib
from typing import NamedTuple

from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.tensor_file import Refused, shown

LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_SIZE = 30
_MAX_DEFLATE_RATIO = 1032  # what the best deflate can do; more is a lie


class Entry(NamedTuple):
    """A record: where its bytes begin, how many they are, and how many (of which CRC-32) they stand for."""

    name: str
    start: int
    stored: int
    size: int
    deflated: bool
    crc: int


def entries(file: MappedFile) -> dict[str, Entry]:
    """Name -> entry of every record of an archive, in its order.

    Raises:
        Refused: the archive is damaged or truncated, has a name twice, records that overlap, or is compressed or
            encrypted in a way that neither torch nor numpy uses.
    """
    try:
        with zipfile.ZipFile(file.path) as archive:
            infos = archive.infolist()
    except Exception as error:  # On damaged archives, zipfile raises a dozen kinds of exceptions.
        raise Refused("is a damaged or truncated zip archive") from error
    found: dict[str, Entry] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        if name in found:
            raise Refused(f"has the record {shown(name)} twice")
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise Refused(f"has a record {shown(name)} that is encrypted or compressed unusually")
        if info.header_offset < end or (not found and info.header_offset):
            raise Refused("has records that overlap, or bytes before the first one")
        header = file.take(info.header_offset, _LOCAL_HEADER_SIZE)
        start = info.header_offset + _LOCAL_HEADER_SIZE
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        end = start + info.compress_size
        if header[:4] != LOCAL_HEADER or end > len(file):
            raise Refused("is a damaged or truncated zip archive")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        most = info.compress_size * (_MAX_DEFLATE_RATIO if deflated else 1)
        if info.file_size > most or (not deflated and info.file_size != info.compress_size):
            raise Refused(f"has a record {shown(name)} with a wrong size")
        found[name] = Entry(name, start, info.compress_size, info.file_size, deflated, info.CRC)
    return found


def stored(file: MappedFile, entry: Entry) -> bytes:
    """The bytes of a record that is not compressed."""
    if entry.deflated:
        raise Refused(f"has a compressed record {shown(entry.name)}; torch.save writes none")
    return file.take(entry.start, entry.size)


def head(file: MappedFile, entry: Entry, most: int) -> bytes:
    """The first `most` bytes of a record (all of them if it has no more), inflated if need be."""
    if not entry.deflated:
        return file.take(entry.start, min(entry.size, most))
    return _inflate(file.take(entry.start, min(entry.stored, 2 * most)), entry, most)


def inflated(file: MappedFile, entry: Entry) -> bytes:
    """The bytes of a compressed record; they are compared with their CRC-32."""
    data = _inflate(file.take(entry.start, entry.stored), entry, entry.size)
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise Refused(f"has a damaged record {shown(entry.name)}")
    return data


def _inflate(data: bytes, entry: Entry, most: int) -> bytes:
    try:
        # Its second argument is a limit, but 0 is none.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most) if most else b""
    except zlib.error as error:
        raise Refused(f"has a damaged record {shown(entry.name)}") from error
