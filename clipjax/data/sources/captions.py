"""A file of captions beside a folder of pictures."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from clipjax.errors import UserError


class Captions:
    """A file of captions beside a folder of pictures.

    Args:
      file: `.jsonl`, each line an object with `image` (path relative to the file) and `text` (a string or a list of
        them), or `.csv` with the columns `image` and `text`. Other keys are kept in the record.
    """

    def __init__(self, file: str):
        path = Path(file)
        if not path.is_file():
            raise UserError(f"There is no caption file {file!r}.")
        self._folder = path.parent
        self._rows = []
        read = _read_csv if path.suffix == ".csv" else _read_jsonl
        try:
            with path.open(newline="" if read is _read_csv else None, encoding="utf-8") as lines:
                for number, row in read(lines, path):
                    if not _is_row(row):
                        raise UserError(
                            f"Line {number} of {path} must have an 'image', the path of a picture, and a 'text', "
                            "a string or a list of them."
                        )
                    self._rows.append(row)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"The caption file {file!r} cannot be read: {error}.") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        text = row["text"]
        try:
            image = (self._folder / row["image"]).read_bytes()
        except OSError:
            image = b""  # counted by the pipeline as a bad record
        return (
            {"language": "en"}
            | row
            | {"image": image, "text": [text] if isinstance(text, str) else text}
        )


def _read_jsonl(file: TextIO, path: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, its object) of every line that is not blank."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"Line {number} of {path} is not JSON: {error}.") from error


def _read_csv(file: TextIO, path: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, the row as a dict) of every row."""
    reader = csv.DictReader(file)
    if not {"image", "text"} <= set(reader.fieldnames or ()):
        raise UserError(
            f"{path} must have the columns 'image' and 'text', not {reader.fieldnames}."
        )
    for row in reader:
        yield reader.line_num, row


def _is_row(row: Any) -> bool:
    """Whether a row names a picture and has a text or a list of them."""
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        return False
    texts = row.get("text")
    texts = texts if isinstance(texts, list) else [texts]
    return all(isinstance(text, str) for text in texts)
