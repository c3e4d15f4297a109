"""The index of a tar: where its members lie, so that any sample can be read without the others.

One pass over the tar writes `NAME.tar.index` beside it (or into another folder): one line of JSON, padded with spaces
to a multiple of 64 bytes, then two little-endian arrays that can be mapped into memory:

    first     uint64 [samples + 1]   the number of each sample's first member, and of members at the end
    members   [members]              offset uint64, size uint64, extension uint16 (a place in the header's list)

Members belong together by webdataset's rule: a sample's key is the path up to the first dot of the file name, its
fields are what follows the dot.
"""

import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clipjax.data.sources.files import filesystem, is_remote
from clipjax.errors import UserError

VERSION = 1
SUFFIX = ".index"
MEMBER = np.dtype([("offset", "<u8"), ("size", "<u8"), ("extension", "<u2")])


class TarIndex(NamedTuple):
    """One tar's members.

    Attributes:
      bytes: size of the tar when it was read.
      extensions: names of fields.
      first_S: uint64 [samples + 1].
      members_M: `MEMBER` [members].
      remarks: what was left out and why, reason -> count.
    """

    bytes: int
    extensions: tuple[str, ...]
    first_S: np.ndarray
    members_M: np.ndarray
    remarks: dict[str, int]

    def __len__(self) -> int:
        return len(self.first_S) - 1

    def fields(self, sample: int) -> dict[str, tuple[int, int]]:
        """Field -> (offset, size) of one sample."""
        rows = self.members_M[int(self.first_S[sample]) : int(self.first_S[sample + 1])]
        return {self.extensions[e]: (int(o), int(s)) for o, s, e in rows.tolist()}


def scan(path: str) -> TarIndex:
    """Reads a tar from front to back, its headers only.

    Members that are not plain files are left out and counted, and so is what follows a damage (a tar that was cut off).

    Raises:
      UserError: not a tar, or a compressed one, in which nothing can be read at random.
    """
    if is_remote(path):
        system, inner = filesystem(path)
        with system.open(inner, "rb") as file:
            return _scan(file, path)
    with open(path, "rb") as file:
        return _scan(file, path)


def _scan(file: BinaryIO, path: str) -> TarIndex:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise UserError(
            f"{path} is compressed, so nothing in it can be read at random; unpack it first (gunzip, zstd -d)."
        )
    file.seek(0)
    samples: dict[str, list[tuple[int, int, int]]] = {}
    extensions: dict[str, int] = {}
    remarks: dict[str, int] = {}

    def note(reason: str) -> None:
        remarks[reason] = remarks.get(reason, 0) + 1

    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                folder, name = os.path.split(member.name)
                stem, dot, extension = name.partition(".")
                if not member.isreg() or not dot or not stem or member.sparse:
                    note("not a plain file with an extension")
                elif member.offset_data + member.size > size:
                    note("cut off")
                else:
                    number = extensions.setdefault(extension.lower(), len(extensions))
                    place = (member.offset_data, member.size, number)
                    samples.setdefault(os.path.join(folder, stem), []).append(place)
    except tarfile.ReadError as error:
        if not samples:
            raise UserError(f"{path} is not a tar that can be read: {error}.") from error
        note("damaged, and what follows it")
    members = [m for sample in samples.values() for m in sample]
    counts = np.fromiter(map(len, samples.values()), np.uint64, len(samples))
    return TarIndex(
        size,
        tuple(extensions),
        np.concatenate([np.zeros(1, np.uint64), np.cumsum(counts, dtype=np.uint64)]),
        np.array(members, MEMBER),
        remarks,
    )


def index_path(tar: str, folder: str | None = None) -> str:
    """Where a tar's index lies: beside it, or in a folder of indices."""
    return f"{os.path.join(folder, os.path.basename(tar)) if folder else tar}{SUFFIX}"


def write(index: TarIndex, path: str | Path) -> None:
    """Writes an index; it is there whole or not at all."""
    header: dict[str, Any] = {
        "clipjax tar index": VERSION,
        "tar bytes": index.bytes,
        "samples": len(index),
        "members": len(index.members_M),
        "extensions": index.extensions,
        "remarks": index.remarks,
    }
    line = json.dumps(header).encode()
    line += b" " * (-(len(line) + 1) % 64) + b"\n"
    data = line + index.first_S.astype("<u8").tobytes() + index.members_M.tobytes()
    if is_remote(str(path)):
        system, inner = filesystem(str(path))
        system.pipe_file(inner, data)
        return
    part = Path(f"{path}.part")
    part.write_bytes(data)
    part.replace(path)


def read(path: str) -> TarIndex:
    """An index; a local one is mapped into memory, not read.

    Raises:
      UserError: it is missing, damaged, or of another version.
    """
    try:
        if is_remote(path):
            system, inner = filesystem(path)
            data: Any = np.frombuffer(system.cat_file(inner), np.uint8)
        else:
            data = np.memmap(path, np.uint8, "r")
        line = bytes(data[: 1 << 20]).partition(b"\n")[0]
        header = json.loads(line)
        if header.get("clipjax tar index") != VERSION:
            raise ValueError("another version")
        start, samples = len(line) + 1, int(header["samples"])
        end = start + 8 * (samples + 1)
        first = data[start:end].view("<u8")
        members = data[end : end + MEMBER.itemsize * int(header["members"])].view(MEMBER)
        if len(first) != samples + 1 or len(members) != header["members"]:
            raise ValueError("cut off")
        return TarIndex(
            header["tar bytes"], tuple(header["extensions"]), first, members, header["remarks"]
        )
    except FileNotFoundError as error:
        tar = path.removesuffix(SUFFIX)
        raise UserError(
            f"There is no index {path!r}; make it with: clipjax data index {tar}"
        ) from error
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        raise UserError(
            f"The index {path!r} cannot be read ({error}); make it again with: clipjax data index"
        ) from error


def total(indices: Iterable[TarIndex]) -> dict[str, int]:
    """Samples, members, and remarks of several tars together."""
    found = {"samples": 0, "members": 0}
    for index in indices:
        found["samples"] += len(index)
        found["members"] += len(index.members_M)
        for reason, count in index.remarks.items():
            found[reason] = found.get(reason, 0) + count
    return found
