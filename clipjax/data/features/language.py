"""The tag of a record's language as a number: the feature `language`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.data.features.settings import struct
from clipjax.data.features.view import View
from clipjax.errors import UserError


class Language:
    """int32 [], the place of the record's `language` among some tags; -1: it is none of them.

    Args:
      name: of the feature and of its field.
      tags: such as ("en", "de").

    Raises:
      UserError: no tags, or one that is no string.
    """

    def __init__(self, config: Mapping[str, Any], *, name: str, tags: Sequence[str]):
        del config
        if isinstance(tags, str) or not tags or not all(isinstance(tag, str) for tag in tags):
            raise UserError(
                f"config.data.features.{name}.tags must be a tuple such as ('en', 'de'), not {tags!r}."
            )
        self.name, self._places = name, {tag: n for n, tag in enumerate(tags)}

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The number, under the feature's name."""
        return {self.name: struct((), np.int32)}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The record's place."""
        del view, rng
        tag = record.get("language")
        place = self._places.get(tag, -1) if isinstance(tag, str) else -1
        return {self.name: np.asarray(place, np.int32)}
