"""A file of hashes of a data set's images, one line "index sha256" a record: written once, compared ever after."""

import hashlib
import os
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError

CHANGED = "image has changed since the hashes were written"
MISSING = "record is not in the hashes"
GONE = "the hashes go on after the last record"
UNREADABLE = "-"  # in the place of a hash


def hash_images(image: Any) -> str:
    """sha256 of an image's bytes, of an array's shape and bytes, or of the hashes of several images.

    Raises:
      BadRecord: it is none of these.
    """
    if isinstance(image, list | tuple):
        if len(image) == 1:
            return hash_images(image[0])
        return hashlib.sha256(b"".join(bytes.fromhex(hash_images(i)) for i in image)).hexdigest()
    if isinstance(image, np.ndarray):
        head = repr((image.dtype.str, image.shape)).encode()
        return hashlib.sha256(head + image.tobytes()).hexdigest()
    if isinstance(image, bytes | bytearray | memoryview):
        return hashlib.sha256(image).hexdigest()
    raise BadRecord("image is neither bytes, array nor image")


class Hashes:
    """The file, compared line by line if it is there, or else written; then it is there when it is whole.

    Args:
      path: of the file; None: nothing is compared or written.
      whole: whether all records of the source are read, so that further lines mean lost records.

    Raises:
      UserError: the file cannot be opened.
    """

    def __init__(self, path: str | None, whole: bool):
        self._path, self._whole = path, whole
        self._compares = path is not None and os.path.exists(path)
        self._file: TextIO | None = None
        if path is not None:
            self._file = open_text(path if self._compares else f"{path}.part", self._compares)

    def take(self, index: int, digest: str) -> str:
        """Writes a line, or compares it: why this record is not what it was, or "". Records come in order.

        Raises:
          UserError: the file has other lines than this writes.
        """
        if self._file is None:
            return ""
        if not self._compares:
            self._file.write(f"{index} {digest}\n")
            return ""
        line = self._file.readline()
        if not line:
            return MISSING
        return "" if self._parse(line, index) == digest else CHANGED

    def rest(self) -> int:
        """How many lines there are of records that are no more."""
        return sum(1 for _ in self._file) if self._compares and self._whole else 0

    def _parse(self, line: str, index: int) -> str:
        number, _, digest = line.strip().partition(" ")
        if number != str(index) or (digest != UNREADABLE and len(digest) != 64):
            raise UserError(
                f"{self._path!r} is not a file of hashes: its line {index + 1} is {line.strip()[:80]!r}, not '{index} "
                "SHA256'; choose another file for --hashes."
            )
        return digest

    def __enter__(self) -> "Hashes":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if self._file is None:
            return
        self._file.close()
        part = Path(f"{self._path}.part")
        if kind is None and not self._compares:
            part.replace(self._path)


def open_text(path: str, reading: bool = False) -> TextIO:
    """A text file.

    Raises:
      UserError: it cannot be opened.
    """
    try:
        return open(path, "r" if reading else "w", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path!r} cannot be opened: {error}.") from error
