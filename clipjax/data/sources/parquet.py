"""Parquet files with images in a column: img2dataset's, and Hugging Face's data sets."""

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.sources import lists
from clipjax.data.sources.files import expand, filesystem, is_remote, patiently
from clipjax.data.sources.rows import record
from clipjax.errors import UserError

OPEN_FILES = 64  # of each process


class Parquet:
    """Rows of Parquet files.

    A row can only be read with its row group, so the last groups are kept; in a global shuffle nearly every row costs a
    group, so this suits evaluation, small row groups, and data that fits in `groups`.

    Args:
      files: paths or patterns, see `files.expand`, or one list of them, see `lists`; local or remote.
      image, text, language: columns of images, captions and language tags, see `rows.record`.
      columns: other columns to keep; None: all.
      groups: how many row groups to keep in memory, of each process.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        image: str | bool | None = None,
        text: str | Sequence[str] | None = None,
        language: str | None = None,
        columns: Sequence[str] | None = None,
        groups: int = 8,
    ):
        listed = lists.read(files) if lists.is_list(files, lists.PARQUETS) else None
        self._paths = list(listed) if listed is not None else expand(files, "Parquet file")
        self._settings, self._columns, self._groups = (image, text, language), columns, groups
        self.__setstate__(self.__dict__)
        found = []  # (file, group, rows)
        for number, path in enumerate(self._paths):
            rows = rows_of(self._file(number)) if listed is None else listed[path].samples
            found += [(number, g, n) for g, n in enumerate(rows) if n]
            if listed is not None and number:
                continue  # the first file stands for all: a list spares opening them
            names = self._file(number).schema_arrow.names
            texts = [text] if isinstance(text, str) else list(text or ())
            missing = [
                c for c in (image, *texts, language, *(columns or ())) if c and c not in names
            ]
            if missing:
                raise UserError(
                    f"{path} has no column {missing[0]!r}; its columns are {', '.join(names)}."
                )
        self._place_Gx3 = np.array(found, np.int64).reshape(-1, 3)
        self._ends = np.cumsum(self._place_Gx3[:, 2])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no row {index}; there are {len(self)}.")
        block = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[block - 1]) if block else 0)
        table = self._group(block)
        return record(table.slice(row, 1).to_pylist()[0], *self._settings)

    def _group(self, block: int) -> Any:
        """A row group's table; one thread reads it while others may read other ones."""
        with self._lock:
            entry = self._tables.setdefault(block, _Slot())
            self._tables.move_to_end(block)
            while len(self._tables) > self._groups:
                self._tables.popitem(last=False)
        with entry.lock:
            if entry.table is None:
                file, group, _ = self._place_Gx3[block].tolist()
                opened = self._file(file)
                if opened.metadata.num_row_groups <= group or (
                    opened.metadata.row_group(group).num_rows != self._place_Gx3[block, 2]
                ):
                    raise UserError(
                        f"{self._paths[file]} has changed since it was listed; make the list again with: clipjax data "
                        "index --list"
                    )
                with self._reading[file % OPEN_FILES]:  # a ParquetFile is not for several threads
                    entry.table = self._read(opened, file, group)
        return entry.table

    def _read(self, opened: Any, file: int, group: int) -> Any:
        """A row group of an open file.

        Raises:
          BadRecord: it is damaged.
          TryAgainError: a remote file cannot be read.
        """
        import pyarrow as arrow

        def read() -> Any:
            return opened.read_row_group(group, columns=self._wanted(opened))

        path = self._paths[file]
        try:
            if not is_remote(path):
                return read()
            # Damage is no reason to try again, but some of it cannot be told from a network that fails.
            found = patiently(path, lambda: _outcome(read, arrow.ArrowInvalid))
            if isinstance(found, Exception):
                raise found
            return found
        except (arrow.ArrowException, OSError) as error:
            raise BadRecord("file is damaged here") from error

    def _wanted(self, opened: Any) -> list[str] | None:
        if self._columns is None:
            return None
        image, text, language = self._settings
        texts = [text] if isinstance(text, str) else list(text or ())
        named = [c for c in (image, *texts, language, *self._columns) if c]
        return (
            named if image is not None and texts else None
        )  # which ones it takes by itself is not known before

    def _file(self, number: int) -> Any:
        with self._lock:
            if number in self._files:
                self._files.move_to_end(number)
                return self._files[number]
        opened = open_file(self._paths[number])
        with self._lock:
            self._files[number] = opened
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return opened

    def __getstate__(self) -> dict[str, Any]:
        gone = ("_lock", "_files", "_tables", "_reading")
        return {k: v for k, v in self.__dict__.items() if k not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._reading = [threading.Lock() for _ in range(OPEN_FILES)]
        self._files: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._tables: collections.OrderedDict[int, _Slot] = collections.OrderedDict()


def open_file(path: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
      UserError: it cannot be read, or pyarrow is not there.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: pip install 'clipjax[parquet]'.") from error
    try:
        if is_remote(path):
            system, inner = filesystem(path)
            return parquet.ParquetFile(inner, filesystem=system)
        return parquet.ParquetFile(path, memory_map=True)
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{path} cannot be read as Parquet: {reason}.") from error


def row_groups(path: str) -> list[int]:
    """Rows of each row group of a file.

    Raises:
      UserError: it cannot be read.
    """
    return rows_of(open_file(path))


def rows_of(opened: Any) -> list[int]:
    """The same of an open file."""
    meta = opened.metadata
    return [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]


def _outcome(action: Callable[[], Any], kind: type[Exception]) -> Any:
    """What an action gives, or the exception of this kind that it raises."""
    try:
        return action()
    except kind as error:
        return error


class _Slot:
    """A place for a row group that is being read."""

    def __init__(self) -> None:
        self.lock, self.table = threading.Lock(), None
