"""Stored vectors of a sample, such as another model's embeddings: the feature `vectors`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.features.column import as_declared, numbers
from clipjax.data.features.settings import declared
from clipjax.data.features.stored import Stored
from clipjax.data.features.view import View
from clipjax.errors import UserError


class Vectors:
    """An array of the declared shape, joined by sample_id from files that are memory-mapped, or a column of the record.

    Args:
      config: of the run.
      name: of the feature and of its field.
      shape: of one sample, such as (768,), or (2, 768).
      files: `.npz` or `.npy`; see clipjax/data/features/stored.py. None: the record's column.
      array: the values' name in a `.npz`; None: the only array beside `sample_id`.
      column: of the record; None: the feature's name.
      dtype: of the field; what is stored (float16, say) is converted to it.

    Raises:
      UserError: a setting that means nothing, or both `files` and `column`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        shape: Sequence[int],
        files: Any = None,
        array: str | None = None,
        column: str | None = None,
        dtype: str = "float32",
    ):
        self._where = f"config.data.features.{name}"
        self.name, self._column = name, column or name
        self._field = declared(shape, dtype, self._where)
        self._stored = stored(config, self._where, files, array, column)

    def open(self) -> None:
        """Maps the files.

        Raises:
          UserError: one that cannot be used, or whose rows have another shape than is declared.
        """
        if self._stored is None:
            return
        self._stored.open()
        if self._stored.shape != self._field.shape or self._stored.dtype.kind not in "fiub":
            raise UserError(
                f"{self._where}.files has rows of {self._stored.dtype.name} {list(self._stored.shape)}, but "
                f"{self._where}.shape declares {list(self._field.shape)}."
            )

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The array, under the feature's name."""
        return {self.name: self._field}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Raises BadRecord if the sample has no such array, or one of another shape or type."""
        del rng
        if self._stored is None:
            return {self.name: numbers(record, self._column, self._field, self.name)}
        row = joined(self._stored, view, self.name)
        return {self.name: as_declared(row, self._field, f"the feature {self.name!r} finds")}


def stored(
    config: Mapping[str, Any], where: str, files: Any, array: str | None, column: str | None
) -> Stored | None:
    """The files of a feature that takes either `files` or a `column`; None without files.

    Raises:
      UserError: both, or an `array` without files.
    """
    if files is None:
        if array is not None:
            raise UserError(
                f"{where}.array is the name of an array in {where}.files, which is not set."
            )
        return None
    if column is not None:
        raise UserError(f"{where} has both files and column; leave out one of them.")
    return Stored(files, array, list(config["data"]["sources"]), f"{where}.files")


def joined(files: Stored, view: View, feature: str) -> np.ndarray:
    """The row of a sample.

    Raises:
      BadRecord: it has none.
    """
    row = files.get(view.sample_id)
    if row is None:
        raise BadRecord(
            "the sample id is not in the stored arrays",
            f"the feature {feature!r} has nothing stored for sample_id {view.sample_id}",
        )
    return row
