"""Numbers of the record as they are: the feature `column`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.features.settings import declared
from clipjax.data.features.view import View


class Column:
    """A number or an array of the record, of the shape and dtype that are declared.

    Args:
      name: of the feature and of its field.
      shape: of one sample; () is one number.
      dtype: such as "float32" or "int32"; what the record has is converted, but not from fractions to integers.
      column: of the record; None: the feature's name.

    Raises:
      UserError: a shape or dtype that means nothing.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        shape: Sequence[int] = (),
        dtype: str = "float32",
        column: str | None = None,
    ):
        del config
        self.name, self._column = name, column or name
        self._field = declared(shape, dtype, f"config.data.features.{name}")

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The numbers, under the feature's name."""
        return {self.name: self._field}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Raises BadRecord if the record has no such column, or another shape or type in it."""
        del view, rng
        return {self.name: numbers(record, self._column, self._field, self.name)}


def numbers(
    record: Mapping[str, Any], column: str, field: jax.ShapeDtypeStruct, feature: str
) -> np.ndarray:
    """A column of a record as an array of the declared shape and dtype.

    Raises:
      BadRecord: it is missing, or has another shape, or numbers that the dtype does not hold.
    """
    value = record.get(column)
    if value is None:
        raise BadRecord(
            "a column is missing",
            f"the feature {feature!r} finds no column {column!r} in the record, which has "
            f"{', '.join(map(str, record))}",
        )
    return as_declared(value, field, f"the feature {feature!r} finds in the column {column!r}")


def as_declared(value: Any, field: jax.ShapeDtypeStruct, finds: str) -> np.ndarray:
    """`value` as an array of the declared shape and dtype.

    Args:
      value: numbers of any kind.
      field: what is declared.
      finds: the beginning of the sentence that refuses, such as "the feature 'score' finds in the column 'score'".

    Raises:
      BadRecord: another shape, or numbers that the dtype does not hold.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal lengths
        raise BadRecord("a column has another shape or type", f"{finds} no array") from error
    # A bool is a number of any dtype, and nothing but a bool is a bool; a fraction is no integer.
    fits = {"b": "b", "i": "bui", "u": "bui"}.get(field.dtype.kind, "buif")
    kind = "f" if array.dtype.name == "bfloat16" else array.dtype.kind
    if array.shape != field.shape or kind not in fits:
        raise BadRecord(
            "a column has another shape or type",
            f"{finds} {array.dtype.name} {list(array.shape)}, but {field.dtype.name} {list(field.shape)} is declared",
        )
    converted = array.astype(field.dtype)
    if field.dtype.kind in "iu" and not (converted == array).all():
        raise BadRecord(
            "a column has another shape or type",
            f"{finds} a number that {field.dtype.name} does not hold",
        )
    return converted
