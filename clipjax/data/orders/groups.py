"""Records by the label that a column or a stored file gives them."""

from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.features.stored import Stored
from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.orders.records import Records
from clipjax.errors import UserError


class Groups:
    """The records of each label, as sample ids.

    Reading a column reads every record once, at the start of a run; for more than some hundred thousand records store
    the labels in a file.

    Args:
      records: of all sources.
      kind: of the order, for messages.
      column: of a record, a number or a string; of a list the first one.
      files: stored whole numbers [N] or [N,l], of which the first counts; see clipjax/data/features/stored.py.
      array: the values' name in a `.npz`.

    Attributes:
      members: for each label, in their sorted order, int64 [n], the ids of its records in rising order. Records without
        a label (a missing column, no stored row, -1) are in none.

    Raises:
      UserError: neither or both of `column` and `files`, a file that cannot be used, or no record with a label.
    """

    def __init__(
        self,
        records: Records,
        kind: str,
        column: str | None,
        files: Any,
        array: str | None,
    ):
        where = "config.data.order"
        if (column is None) == (files is None):
            raise UserError(
                f"{where}.kind = {kind!r} needs the records' labels: set {where}.column or {where}.files, one of them."
            )
        ids_N = all_ids(records)
        if files is not None:
            stored = Stored(files, array, records.names, f"{where}.files")
            stored.open()
            labels_N, there_N = _stored_labels(stored, ids_N, where)
        else:
            labels_N, there_N = _column_labels(records, column)
        if not there_N.any():
            what = f"a column {column!r}" if files is None else "a row in the files"
            raise UserError(
                f"{where}: none of {len(ids_N):,} records has {what}, so no batch can be drawn."
            )
        ids_N, labels_N = ids_N[there_N], labels_N[there_N]
        by_label_N = np.argsort(labels_N, kind="stable")
        _, starts = np.unique(labels_N[by_label_N], return_index=True)
        self.members = np.split(ids_N[by_label_N], starts[1:])


def all_ids(records: Records) -> np.ndarray:
    """The sample ids of all records, int64 [N]."""
    parts = [
        np.arange(n, dtype=np.int64) + (s << SOURCE_BITS) for s, n in enumerate(records.lengths)
    ]
    return np.concatenate(parts)


def split_id(sample_id: int) -> tuple[int, int]:
    """(source, record) of a sample id."""
    return int(sample_id) >> SOURCE_BITS, int(sample_id) & (1 << SOURCE_BITS) - 1


def _stored_labels(stored: Stored, ids_N: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    if stored.dtype.kind not in "iu" or len(stored.shape) > 1:
        raise UserError(
            f"{where}.files must hold whole numbers [N] or [N,l], not {stored.dtype.name} {['N', *stored.shape]}."
        )
    labels, there_N = stored.get_all(ids_N)
    labels_N = labels.reshape(len(ids_N), -1)[:, 0]
    return labels_N, there_N & (labels_N != -1)


def _column_labels(records: Records, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of every record; strings keep their kind."""
    found: list[Any] = []
    for source, name in zip(records.sources, records.names, strict=True):
        for index in range(len(source)):
            try:
                value = source[index].get(column)
            except BadRecord:
                value = None
            if isinstance(value, list | tuple | np.ndarray):
                value = value[0] if len(value) else None
            if isinstance(value, np.generic):
                value = value.item()
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
                raise UserError(
                    f"config.data.order.column = {column!r}: record {index} of source {name!r} has {value!r} there, "
                    "which is no label (a whole number or a string)."
                )
            found.append(None if value == -1 else value)
    there_N = np.array([value is not None for value in found], bool)
    # Labels of all sources are compared as texts if any is one.
    texts = any(isinstance(value, str) for value in found)
    blank = "" if texts else -1
    plain = [blank if v is None else str(v) if texts else v for v in found]
    return np.array(plain), there_N
