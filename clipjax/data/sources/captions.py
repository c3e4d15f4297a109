"""A file of captions beside a folder of pictures."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.sources.files import Reader
from clipjax.data.sources.rows import strings
from clipjax.errors import UserError


class Captions:
    """A file of captions beside a folder of pictures.

    Of a `.jsonl` only the places of its lines are kept, 8 bytes a line; a `.csv` is kept whole. The first row must be
    right; a later one that is broken is a bad record like a broken picture, which a run counts and goes on.

    Args:
      file: `.jsonl`, each line an object with `image` (path relative to the file), `text` (a string or a list of them)
        or both, or `.csv` with such columns. Other keys are kept in the record. Blank lines are none.
    """

    def __init__(self, file: str):
        path = Path(file)
        if not path.is_file():
            raise UserError(f"There is no caption file {file!r}.")
        self._path, self._folder = str(path), path.parent
        self._reader, self._rows = Reader(), None
        try:
            if path.suffix == ".csv":
                self._rows = _read_csv(path)
            else:
                self._place_Nx2 = _lines(path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"The caption file {file!r} cannot be read: {error}.") from error
        if len(self):
            try:
                self._row(0)
            except BadRecord as error:
                raise UserError(
                    f"The first row of {path} must have an 'image', the path of an image, a 'text', a string or a list "
                    f"of them, or both ({error})."
                ) from error

    def __len__(self) -> int:
        return len(self._place_Nx2 if self._rows is None else self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        image = row.get("image")
        try:
            image = None if image is None else (self._folder / image).read_bytes()
        except (OSError, ValueError) as error:  # a name with a zero byte
            raise BadRecord("image file cannot be read") from error
        return {"language": "en"} | row | {"image": image, "text": strings(row.get("text"))}

    def _row(self, index: int) -> dict[str, Any]:
        """A row, checked.

        Raises:
          BadRecord: it is broken.
        """
        row: Any
        if self._rows is not None:
            row = self._rows[index]
        else:
            offset, size = self._place_Nx2[index].tolist()
            try:
                row = json.loads(self._reader.read(self._path, offset, size))
            except UnicodeDecodeError as error:
                raise BadRecord("text is not UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise BadRecord("json is broken") from error
        if not isinstance(row, dict):
            raise BadRecord("json is no object")
        if row.get("image") is None and row.get("text") is None:
            raise BadRecord("there is no image")
        if not isinstance(row.get("image"), str | None):
            raise BadRecord("there is no image")
        strings(row.get("text"))
        return row


def _lines(path: Path) -> np.ndarray:
    """int64 [N,2], offset and length of every line that is not blank."""
    places, offset = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                places.append((offset, len(line)))
            offset += len(line)
    return np.array(places, np.int64).reshape(-1, 2)


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """All rows; bytes that are not UTF-8 stay as they are, and make their row a bad one."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if not {"image", "text"} & set(reader.fieldnames or ()):
            raise UserError(
                f"{path} must have the columns 'image', 'text' or both, not {reader.fieldnames}."
            )
        return list(reader)
