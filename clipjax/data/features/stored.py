"""Arrays on disk that are joined to samples by their sample_id, memory-mapped.

Three layouts; see docs/data.md:

  FILE.npz                    `sample_id` int64 [N], and the values [N, ...] under any name. As `np.savez` writes it,
                              it is memory-mapped; a compressed one is read into memory.
  FILE.npy, FILE.sample_id.npy   values [N, ...], and their int64 [N] beside them.
  FILE.npy alone              row i belongs to record i; then `files` must say of which source.

A sample_id is (number of the source in config.data.sources << 40) + index of the record. Where `files` is a dict of the
sources' names, only the index counts, so that the file also serves a run whose sources are others.
"""

import struct
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.sources.files import expand, is_remote
from clipjax.errors import UserError

_INDEX = (1 << SOURCE_BITS) - 1


class Stored:
    """Values by sample_id. May be pickled: then the files are mapped anew, where it arrives.

    Nothing is read before `open`.

    Args:
      files: a path or pattern, several of them, or such for each source by its name.
      array: the values' name in a `.npz`; None: the only array beside `sample_id`.
      sources: the names of the config's sources, in order.
      where: the setting that names the files, for messages.

    Attributes:
      shape, dtype: of one row; known after `open`.

    Raises:
      UserError: `files` is none of these, or names a source that there is not.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, files: Any, array: str | None, sources: Sequence[str], where: str = "files"):
        given = dict(files) if isinstance(files, Mapping) else {None: files}
        for name, paths in given.items():
            if name is not None and name not in sources:
                raise UserError(
                    f"{where} names the source {name!r}, which config.data.sources does not have "
                    f"(there are: {', '.join(sources)})."
                )
            listed = isinstance(paths, tuple | list) and paths
            if not isinstance(paths, str) and not (
                listed and all(isinstance(path, str) for path in paths)
            ):
                raise UserError(
                    f"{where} must be a path, several, or a dict of them by source, not {files!r}."
                )
        self._given, self._array, self._where = given, array, where
        self._sources = list(sources)
        self._tables: dict[int | None, list[_Table]] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Maps the files.

        Raises:
          UserError: a file that is missing or broken, without ids, or with rows unlike the others'.
        """
        tables: dict[int | None, list[_Table]] = {}
        for name, paths in self._given.items():
            number = None if name is None else self._sources.index(name)
            tables[number] = [
                _Table(path, self._array, number, self._where)
                for path in expand(paths, f"file of {self._where}")
            ]
        every = [table for group in tables.values() for table in group]
        for table in every[1:]:
            if table.values.shape[1:] != every[0].values.shape[1:]:
                raise UserError(
                    f"{self._where}: the rows of {table.path!r} have the shape {list(table.values.shape[1:])}, those "
                    f"of {every[0].path!r} {list(every[0].values.shape[1:])}."
                )
        self.shape, self.dtype = every[0].values.shape[1:], every[0].values.dtype
        self._tables = tables

    def get(self, sample_id: int) -> np.ndarray | None:
        """The row of a sample, a view of the file; None if no file has it."""
        if not self._tables:
            with self._lock:
                if not self._tables:
                    self.open()
        for number, wanted in ((None, sample_id), (sample_id >> SOURCE_BITS, sample_id & _INDEX)):
            for table in self._tables.get(number, ()):
                row = table.row(wanted)
                if row is not None:
                    return table.values[row]
        return None

    def get_all(self, sample_ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of many samples [N, ...], zeros where there is none, and bool [N]: whether there is one."""
        found_N = np.zeros(len(sample_ids_N), bool)
        values = np.zeros((len(sample_ids_N), *self.shape), self.dtype)
        for number, group in self._tables.items():
            mine_N = sample_ids_N if number is None else sample_ids_N & _INDEX
            of_source_N = (sample_ids_N >> SOURCE_BITS == number) | (number is None)
            for table in group:
                rows_N, there_N = table.rows(mine_N)
                there_N &= of_source_N & ~found_N
                values[there_N], found_N = table.values[rows_N[there_N]], found_N | there_N
        return values, found_N

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"} | {"_tables": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class _Table:
    """One file: `values` [N, ...] and where an id's row is."""

    def __init__(self, path: str, array: str | None, source: int | None, where: str):
        if is_remote(path):
            raise UserError(
                f"{where}: {path!r} is remote, and only local files are memory-mapped; copy it here first."
            )
        self.path = path
        try:
            self._ids, self.values = _read(path, array, source, where)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{where}: {path!r} cannot be read: {error}.") from error
        self._order = None
        if self._ids is not None:
            steps = self._ids[1:] > self._ids[:-1]
            if not steps.all():
                self._order = np.argsort(self._ids, kind="stable")
                self._ids = self._ids[self._order]
                if not (self._ids[1:] > self._ids[:-1]).all():
                    raise UserError(f"{where}: {path!r} has a sample_id twice.")

    def row(self, sample_id: int) -> int | None:
        rows, there = self.rows(np.array([sample_id], np.int64))
        return int(rows[0]) if there[0] else None

    def rows(self, ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._ids is None:
            return ids_N, ids_N < len(self.values)
        if not len(self._ids):
            return np.zeros_like(ids_N), np.zeros(len(ids_N), bool)
        places_N = np.minimum(np.searchsorted(self._ids, ids_N), len(self._ids) - 1)
        there_N = np.asarray(self._ids[places_N]) == ids_N
        return (places_N if self._order is None else self._order[places_N]), there_N


def _read(
    path: str, array: str | None, source: int | None, where: str
) -> tuple[np.ndarray | None, np.ndarray]:
    """(ids, values) of a file; no ids where row i belongs to record i."""
    ids: np.ndarray | None
    if path.endswith(".npy"):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        beside = Path(path).with_suffix(".sample_id.npy")
        ids = np.load(beside, mmap_mode="r", allow_pickle=False) if beside.exists() else None
        if ids is None and source is None:
            raise UserError(
                f"{where}: {path!r} has no ids, since there is no file {beside.name!r} beside it; write that, or say "
                "which source's records its rows are: {'SOURCE': " + f"{path!r}" + "}."
            )
    elif path.endswith(".npz"):
        arrays = _map_npz(path)
        others = [name for name in arrays if name != "sample_id"]
        name = others[0] if array is None and len(others) == 1 else array
        if "sample_id" not in arrays or name not in others:
            asked = "one array beside it" if array is None else f"{array!r}"
            raise UserError(
                f"{where}: {path!r} must hold 'sample_id' and {asked}, but it holds {', '.join(arrays) or 'nothing'}"
                f"{' (choose one with `array`)' if array is None and len(others) > 1 else ''}."
            )
        ids, values = arrays["sample_id"], arrays[name]
    else:
        raise UserError(f"{where}: {path!r} must end in .npz or .npy.")
    if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        raise UserError(f"{where}: the sample_id of {path!r} must be whole numbers [N].")
    if not values.ndim or (ids is not None and len(ids) != len(values)):
        rows = "one number" if not values.ndim else f"{len(values)} rows"
        raise UserError(f"{where}: {path!r} has {rows} for {0 if ids is None else len(ids)} ids.")
    return ids, values


def _map_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`, memory-mapped where they are stored as they are."""
    found = {}
    with zipfile.ZipFile(path) as members, open(path, "rb") as file:
        for member in members.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED:
                with members.open(member) as data:
                    found[name] = np.lib.format.read_array(data, allow_pickle=False)
                continue
            file.seek(member.header_offset + 26)  # the lengths of the name and of what follows it
            file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
            version = np.lib.format.read_magic(file)
            read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise ValueError(f"{name} holds Python objects")
            order = "F" if fortran else "C"
            if 0 in shape:
                found[name] = np.zeros(shape, dtype)
            else:
                found[name] = np.memmap(path, dtype, "r", file.tell(), shape, order)
    return found
