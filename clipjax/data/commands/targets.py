"""The layouts that `clipjax data convert` writes: how a record fits into each, and how a shard is written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.data.sources import array_record, held, parquet_writer, tar_index, tar_writer
from clipjax.errors import UserError
from clipjax.registry import nearest


class ArrayRecordTarget:
    """clipjax's own records: everything survives, and a random read costs one record."""

    kind, suffix, setting = "array_record", ".arrayrecord", "files"

    def look(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Learns from some records, as `fit` gives them, what all shards need to know."""

    def fit(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A raw record as this layout holds it; BadRecord or UserError, see clipjax/data/sources/held.py."""
        return held.whole(record)

    def size(self, fields: Mapping[str, Any]) -> int:
        """About how many bytes a record takes."""
        return len(array_record.encode(fields)) + 64

    def write(self, records: Iterable[Mapping[str, Any]], path: Path) -> int:
        """Writes one shard, whole or not at all; returns the number of records."""
        return array_record.write(records, path)

    def files(self, path: Path) -> list[Path]:
        """What is there when a shard is."""
        return [path]


class TarTarget(ArrayRecordTarget):
    """webdataset's tars with their index."""

    kind, suffix, setting = "tars", ".tar", "shards"

    def fit(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """See `tar_writer.fit`."""
        return tar_writer.fit(record)

    def size(self, fields: Mapping[str, Any]) -> int:
        """Three members with a header each, filled up to 512 bytes."""
        return len(array_record.encode(fields)) + 3 * (512 + 256)

    def write(self, records: Iterable[Mapping[str, Any]], path: Path) -> int:
        """Keys begin with the shard's number."""
        return tar_writer.write(records, path, path.stem)

    def files(self, path: Path) -> list[Path]:
        """The tar and its index."""
        return [path, Path(tar_index.index_path(str(path)))]


class ParquetTarget(ArrayRecordTarget):
    """Parquet with a column for each field."""

    kind, suffix, setting = "parquet", ".parquet", "files"

    def look(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Finds the columns."""
        self._schema = parquet_writer.schema_of(records)

    def fit(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """See `parquet_writer.fit`."""
        return parquet_writer.fit(record)

    def write(self, records: Iterable[Mapping[str, Any]], path: Path) -> int:
        """Row groups are small, so that a random read is not too dear."""
        return parquet_writer.write(records, path, self._schema)


TARGETS = {t.kind: t for t in (ArrayRecordTarget, TarTarget, ParquetTarget)}


def make_target(name: str) -> ArrayRecordTarget:
    """The layout of a name.

    Raises:
      UserError: there is none.
    """
    if name not in TARGETS:
        raise UserError(f"--to cannot be {name!r}{nearest(name, TARGETS)}.")
    return TARGETS[name]()
