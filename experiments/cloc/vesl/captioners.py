"""VESL's first step: captions of an image. `--captioner` is a key of `KINDS` or an import path.

A captioner has `load()`, which is called once in every process, and is called with a batch of `Example`s; it returns
a list of captions for each of them, empty if there are none. It may have `check(records)`, which is called with some
records before anything runs, and `fingerprint()`, which must stay the same while a job is stopped and goes on.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipjax.data.bad import BadRecord
from clipjax.data.sources.files import expand, read_all
from clipjax.data.sources.rows import strings
from clipjax.errors import UserError
from clipjax.registry import nearest
from experiments.cloc.vesl.example import Example

KINDS = {
    "field": "experiments.cloc.vesl.captioners:FieldCaptioner",
    "file": "experiments.cloc.vesl.captioners:FileCaptioner",
    "transformers": "experiments.cloc.vesl.transformers_captioner:TransformersCaptioner",
}


class FieldCaptioner:
    """Captions that are in the records already.

    Args:
      fields: the first of them that has a text that is not blank gives the captions, all its texts. So a rewritten
        caption may be wanted, and the alt-text do where it is missing.

    Raises:
      UserError: something else than names of fields.
    """

    def __init__(self, fields: str | Sequence[str] = "text"):
        names = [fields] if isinstance(fields, str) else fields
        if not (
            isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names)
        ):
            raise UserError(f"The captioner 'field' needs names of fields, not {fields!r}.")
        self._fields = tuple(names)

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError if not one of some records has a field."""
        _check(records, self._fields, "--captioner.fields")

    def load(self) -> None:
        """There is nothing to load."""

    def __call__(self, examples: Sequence[Example]) -> list[list[str]]:
        """Raises BadRecord for a field that is no text."""
        return [self._of(example.record) for example in examples]

    def _of(self, record: Any) -> list[str]:
        texts = (_texts(record.get(field)) for field in self._fields)
        return next((found for found in texts if found), [])


class FileCaptioner:
    """Captions from files beside the data set, all of which each process keeps in memory.

    Args:
      file: paths or patterns of `.jsonl`, `.csv` or `.parquet`, see `clipjax.data.sources.files.expand`.
      key: the files' column that tells whose caption it is.
      field: the records' field with the same values; None: it has the same name.
      text: the files' column of captions: a text, or a list of them. Several rows of one key add up.
    """

    def __init__(
        self,
        file: str | Sequence[str],
        key: str,
        field: str | None = None,
        text: str = "text",
    ):
        self._paths = expand(file, "caption file")
        self._key, self._field, self._text = key, field or key, text

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError if not one of some records has the field."""
        _check(records, [self._field], "--captioner.field")

    def fingerprint(self) -> str:
        """A hash of the files; UserError if they cannot be read."""
        found = hashlib.sha256()
        for path in self._paths:
            found.update(hashlib.sha256(_read(path)).digest())
        return found.hexdigest()

    def load(self) -> None:
        """Reads the files.

        Raises:
          UserError: a file that cannot be read, or a row without the columns.
        """
        self._captions: dict[str, list[str]] = {}
        for path in self._paths:
            for number, row in enumerate(_rows(path, (self._key, self._text)), 1):
                if not isinstance(row, dict) or row.get(self._key) is None or self._text not in row:
                    raise UserError(
                        f"Row {number} of {path} has no {self._key!r} or no {self._text!r}; name the columns with "
                        "--captioner.key and --captioner.text."
                    )
                try:
                    texts = _texts(row[self._text])
                except BadRecord as error:
                    raise UserError(f"Row {number} of {path}: {error}.") from error
                self._captions.setdefault(_name(row[self._key]), []).extend(texts)

    def __call__(self, examples: Sequence[Example]) -> list[list[str]]:
        """Raises BadRecord for a record without the field."""
        return [self._of(example.record) for example in examples]

    def _of(self, record: Any) -> list[str]:
        if record.get(self._field) is None:
            raise BadRecord(f"there is no field {self._field!r}, by which captions are found")
        return self._captions.get(_name(record[self._field]), [])


def _name(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _texts(value: Any) -> list[str]:
    return [text for text in strings(value) if text.strip()]


def _check(records: Sequence[Mapping[str, Any]], fields: Sequence[str], flag: str) -> None:
    there = sorted({name for record in records for name in record})
    if not set(fields) & set(there):
        wanted = ", ".join(map(repr, fields))
        raise UserError(
            f"None of {len(records):,} records, drawn from everywhere, has the field {wanted}"
            f"{nearest(fields[0], there)}; name another with {flag}."
        )


def _read(path: str) -> bytes:
    try:
        return read_all(path)
    except OSError as error:
        raise UserError(f"The caption file {path!r} cannot be read: {error}.") from error


def _rows(path: str, columns: Sequence[str]) -> Iterator[Any]:
    """The rows of a file of captions; of Parquet these columns only, the others may be images."""
    data = _read(path)
    try:
        if path.lower().endswith(".parquet"):
            import pyarrow.parquet

            file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
            for name in columns:
                if name not in file.schema_arrow.names:
                    raise UserError(
                        f"The caption file {path!r} has no column {name!r}{nearest(name, file.schema_arrow.names)}; "
                        "name the columns with --captioner.key and --captioner.text."
                    )
            yield from file.read(columns=list(columns)).to_pylist()
        elif path.lower().endswith(".csv"):
            yield from csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        elif path.lower().endswith(".jsonl"):
            lines = data.decode("utf-8-sig").split("\n")
            yield from (json.loads(line) for line in lines if line.strip())
        else:
            raise UserError(f"The caption file {path!r} must end with .jsonl, .csv or .parquet.")
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: pip install 'clipjax[parquet]'.") from error
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors, too
        raise UserError(f"The caption file {path!r} cannot be read: {error}.") from error
