"""Class labels of a sample, of the record or joined by sample_id: the feature `labels`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.features.settings import struct, whole
from clipjax.data.features.vectors import joined, stored
from clipjax.data.features.view import View
from clipjax.errors import UserError


class Labels:
    """int32 [l], padded with -1.

    A record or a file may have more than l labels: the first l of them are taken (labels in the order of their
    similarity); it may have fewer, but not none.

    Args:
      config: of the run.
      name: of the feature and of its field.
      count: l.
      column: of the record, a number or a list; None: the feature's name.
      files: `.npz` or `.npy` of whole numbers [N] or [N,l]; see clipjax/data/features/stored.py. None: the column.
      array: the values' name in a `.npz`; None: the only array beside `sample_id`.
      classes: where the column holds names: all of them; a label is a name's place here.

    Raises:
      UserError: a setting that means nothing, or both `files` and `column`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        count: int = 1,
        column: str | None = None,
        files: Any = None,
        array: str | None = None,
        classes: Sequence[str] | None = None,
    ):
        self._where = f"config.data.features.{name}"
        self.name, self._column = name, column or name
        self.count = whole(count, 1, f"{self._where}.count")
        self._stored = stored(config, self._where, files, array, column)
        if classes is not None and (isinstance(classes, str) or not classes):
            raise UserError(f"{self._where}.classes must be a tuple of names, not {classes!r}.")
        if classes is not None and files is not None:
            raise UserError(
                f"{self._where}.classes is for names in a column; stored labels are numbers."
            )
        self._places = None if classes is None else {c: n for n, c in enumerate(classes)}

    def open(self) -> None:
        """Maps the files.

        Raises:
          UserError: one that cannot be used, or whose rows are no labels.
        """
        if self._stored is None:
            return
        self._stored.open()
        if self._stored.dtype.kind not in "iu" or len(self._stored.shape) > 1:
            raise UserError(
                f"{self._where}.files must hold whole numbers [N] or [N,l], not {self._stored.dtype.name} "
                f"{['N', *self._stored.shape]}."
            )

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The labels, under the feature's name."""
        return {self.name: struct((self.count,), np.int32)}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Raises BadRecord if the sample has no label, or one that is none."""
        del rng
        if self._stored is not None:
            found = np.atleast_1d(joined(self._stored, view, self.name))
        else:
            found = self._of_record(record)
        found = found[found != -1][: self.count]
        if not len(found):
            raise BadRecord("a column is missing", f"the feature {self.name!r} finds no label")
        if found.min() < 0 or found.max() >= 2**31:
            raise BadRecord(
                "a column has another shape or type",
                f"the feature {self.name!r} finds the label {found.min()}, and labels are from 0 to 2**31 - 1",
            )
        labels_l = np.full(self.count, -1, np.int32)
        labels_l[: len(found)] = found
        return {self.name: labels_l}

    def _of_record(self, record: Mapping[str, Any]) -> np.ndarray:
        value = record.get(self._column)
        if value is None:
            raise BadRecord(
                "a column is missing",
                f"the feature {self.name!r} finds no column {self._column!r} in the record, which has "
                f"{', '.join(map(str, record))}",
            )
        values = [value] if isinstance(value, str | bytes) else np.atleast_1d(value).tolist()
        if self._places is not None:
            names = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
            unknown = [n for n in names if not isinstance(n, str) or n not in self._places]
            if unknown:
                raise BadRecord(
                    "a column has another shape or type",
                    f"the feature {self.name!r} finds {unknown[0]!r} in the column {self._column!r}, which is none of "
                    "its classes",
                )
            return np.array([self._places[n] for n in names], np.int64)
        found = np.asarray(values)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise BadRecord(
                "a column has another shape or type",
                f"the feature {self.name!r} finds {value!r} in the column {self._column!r}, which is no label and no "
                "list of them (names need `classes`)",
            )
        return found.astype(np.int64)
