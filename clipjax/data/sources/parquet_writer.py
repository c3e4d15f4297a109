"""Writes Parquet: a column of encoded images, one of lists of captions, and one for each other field."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.data.sources.held import flat
from clipjax.errors import UserError

ROWS = 64  # of a row group, which a random read costs


def fit(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as Parquet can hold it; see `held.flat`."""
    return flat(record, "Parquet", maps=False)


def schema_of(records: Sequence[Mapping[str, Any]]) -> Any:
    """The columns (a `pyarrow.Schema`) of all files, found from some records as `fit` gives them.

    Raises:
      UserError: pyarrow is missing, or values of one field do not fit into one column.
    """
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'clipjax[parquet]'.") from error
    types = {"image": arrow.binary(), "text": arrow.list_(arrow.string())}
    for name in dict.fromkeys(name for record in records for name in record):
        if name not in types:
            types[name] = _array(name, records, None).type
    return arrow.schema(list(types.items()))


def write(records: Iterable[Mapping[str, Any]], path: str | Path, schema: Any) -> int:
    """Writes one file; it is there whole or not at all. Returns how many records.

    Args:
      records: as `fit` gives them; what one lacks is null.
      path: of the file.
      schema: of `schema_of`.

    Raises:
      UserError: a field that has no column, or a value that does not fit into its column.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    part, count, records = Path(f"{path}.part"), 0, iter(records)
    with parquet.ParquetWriter(
        part, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        while rows := list(itertools.islice(records, ROWS)):
            extra = next((n for row in rows for n in row if n not in schema.names), None)
            if extra is not None:
                _refuse(extra, "only few records have, so that it got no column")
            columns = [_array(field.name, rows, field.type) for field in schema]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema), len(rows))
            count += len(rows)
    part.replace(path)
    return count


def _array(name: str, rows: Sequence[Mapping[str, Any]], kind: Any) -> Any:
    import pyarrow as arrow

    try:
        return arrow.array([row.get(name) for row in rows], kind)
    except (arrow.ArrowException, TypeError, ValueError, OverflowError):
        column = "one column" if kind is None else f"its column ({kind})"
        _refuse(name, f"has values that do not fit into {column}")


def _refuse(name: str, why: str) -> None:
    raise UserError(
        f"Parquet cannot hold the field {name!r}, which {why}; leave it out with --drop {name}, or write "
        "--to=array_record."
    )
