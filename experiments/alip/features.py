"""The texts of a sample by their fields: a raw text, and beside it a synthetic caption."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.captions import texts_of


class Fields:
    """Caption policy: the first text of each of some `fields`, in their order; a batch's `text` is [B,K,L]."""

    def __init__(self, fields: Sequence[str] = ("raw", "synthetic")):
        self.fields = (fields,) if isinstance(fields, str) else tuple(fields)
        self.count = len(self.fields)

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> list[str]:
        """Raises BadRecord if one of the fields has no text."""
        del rng
        found = [texts_of(record, field)[:1] for field in self.fields]
        if not all(found):
            raise BadRecord("text is empty")
        return [text for (text,) in found]
