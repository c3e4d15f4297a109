"""webdataset's tars, read at random: img2dataset's, DataComp's, and any others with one image a key."""

import collections
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.sources import lists, tar_index
from clipjax.data.sources.files import Reader, expand, is_remote, size_of
from clipjax.data.sources.rows import IMAGES, record
from clipjax.errors import UserError

OPEN_INDICES = 256  # of each process


class Tars:
    """Samples of tars that have an index beside them (`clipjax data index`).

    A sample is what shares a name up to the first dot. `NAME.json` is parsed and its keys become fields of the record,
    `NAME.txt` is its caption; both may be there. Only the fields that are asked for are read.

    Args:
      shards: paths or patterns, see `files.expand`, or one list of them, see `lists`; local or remote.
      image: the image's extension; None: whichever of jpg, png, webp, ... is there; False: there are none.
      text: where captions stand: extensions, and keys of the json; all that are there are captions of the image.
        None: the txt, or else the json's caption.
      language: the json's key of a language tag; None: "language", if there is one.
      index: folder of the indices; None: beside the tars.
      read_ahead: MB; remote tars are read in pieces of that size, and the last 32 are kept. For a source with a
        `window`, whose neighbours in the stream are neighbours in the tars.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        image: str | bool | None = None,
        text: str | Sequence[str] | None = None,
        language: str | None = None,
        index: str | None = None,
        read_ahead: float = 0.0,
    ):
        counts = lists.read(shards) if lists.is_list(shards, lists.TARS) else None
        self._shards = list(counts) if counts is not None else expand(shards, "tar")
        self._settings = (image, text, language)
        self._folder = index
        self._reader = Reader(round(read_ahead * 1e6))
        lengths = (
            [sum(c.samples) for c in counts.values()] if counts else map(self._length, self._shards)
        )
        self._ends = np.cumsum(np.fromiter(lengths, np.int64, len(self._shards)))
        self.__setstate__(self.__dict__)

    def _length(self, shard: str) -> int:
        index = tar_index.read(tar_index.index_path(shard, self._folder))
        # A remote file is not asked: a set may have a hundred thousand of them.
        if not is_remote(shard) and size_of(shard) != index.bytes:
            raise UserError(
                f"{shard} has changed since it was indexed; run again: clipjax data index {shard}"
            )
        return len(index)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not 0 <= position < len(self):
            raise IndexError(f"There is no sample {position}; there are {len(self)}.")
        shard = int(np.searchsorted(self._ends, position, side="right"))
        number = position - (int(self._ends[shard - 1]) if shard else 0)
        places = self._index(shard).fields(number)
        row: dict[str, Any] = {}
        image, text, language = self._settings
        for field in self._wanted(places):
            offset, size = places[field]
            data = self._reader.read(self._shards[shard], offset, size)
            if len(data) < size:
                raise BadRecord("the tar is shorter than its index says")
            if field == "json":
                row |= _parse(data)
            else:
                row[field] = data
        return record(row, image, text, language)

    def _wanted(self, places: dict[str, tuple[int, int]]) -> list[str]:
        """The fields to read, the json first: a file of the same name as one of its keys wins."""
        image, text, _ = self._settings
        texts = ["txt"] if text is None else [text] if isinstance(text, str) else list(text)
        images = [image] if image else [k for k in IMAGES if k in places][:1]
        if image is False:
            images = []
        return [f for f in ("json", *texts, *images, "cls") if f in places]

    def _index(self, shard: int) -> tar_index.TarIndex:
        with self._lock:
            found = self._indices.get(shard)
            if found is None:
                path = tar_index.index_path(self._shards[shard], self._folder)
                found = self._indices[shard] = tar_index.read(path)
                before = int(self._ends[shard - 1]) if shard else 0
                if len(found) != self._ends[shard] - before:
                    raise UserError(
                        f"{path} has {len(found):,} samples, but the list of tars says {self._ends[shard] - before:,}; "
                        "make the list again with: clipjax data index --list"
                    )
                if len(self._indices) > OPEN_INDICES:
                    self._indices.popitem(last=False)
            else:
                self._indices.move_to_end(shard)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_indices")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._indices: collections.OrderedDict[int, tar_index.TarIndex] = collections.OrderedDict()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord("json is broken") from error
    if not isinstance(found, dict):
        raise BadRecord("json is no object")
    return found
