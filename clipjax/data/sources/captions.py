"""A file of captions beside a folder of images."""

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
    """A file of captions beside a folder of images.

    Of a `.jsonl` only the places of its lines are kept, 8 bytes a line; a `.csv` is kept whole. The first row must be
    right; a later one that is broken is a bad record like a broken image, which a run counts and goes on.

    Args:
      file: `.jsonl`, each line an object with `image` (path relative to the file) and `text` (a string or a list of
        them), or `.csv` with the columns `image` and `text`. Other keys are kept in the record. Blank lines are none.
      image: whether there are images; with False none is looked for.
      text: the same for texts.
    """

    def __init__(self, file: str, image: bool = True, text: bool = True):
        self._needs = tuple(k for k, there in (("image", image), ("text", text)) if there)
        path = Path(file)
        if not path.is_file():
            raise UserError(f"There is no caption file {file!r}.")
        self._path, self._folder = str(path), path.parent
        self._reader, self._rows = Reader(), None
        try:
            if path.suffix == ".csv":
                self._rows = _read_csv(path, self._needs)
            else:
                self._place_Nx2 = _lines(path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"The caption file {file!r} cannot be read: {error}.") from error
        if len(self):
            try:
                self._row(0)
            except BadRecord as error:
                raise UserError(
                    f"The first row of {path} must have an 'image', the path of an image, and a 'text', a string or a "
                    f"list of them ({error}); image=False or text=False says that there are none."
                ) from error

    def __len__(self) -> int:
        return len(self._place_Nx2 if self._rows is None else self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, image = self._row(index), None
        if "image" in self._needs:
            try:
                image = (self._folder / row["image"]).read_bytes()
            except (OSError, ValueError) as error:  # a name with a zero byte
                raise BadRecord("image file cannot be read") from error
        texts = strings(row["text"]) if "text" in self._needs else []
        return {"language": "en"} | row | {"image": image, "text": texts}

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
        if "image" in self._needs and not isinstance(row.get("image"), str):
            raise BadRecord("there is no image")
        if "text" in self._needs:
            if row.get("text") is None:
                raise BadRecord("text is empty")
            strings(row["text"])
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


def _read_csv(path: Path, needs: tuple[str, ...]) -> list[dict[str, Any]]:
    """All rows; bytes that are not UTF-8 stay as they are, and make their row a bad one."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if not set(needs) <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path} must have the columns {' and '.join(map(repr, needs))}, not {reader.fieldnames}; "
                "image=False or text=False says that there are none."
            )
        return list(reader)
