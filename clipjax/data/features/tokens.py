"""Token ids of any column of the record, in any tokenizer: the feature `tokens`."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.captions import texts_of
from clipjax.data.features.settings import row_length, struct, tokenizer_section, whole
from clipjax.data.features.text import encode
from clipjax.data.features.view import View
from clipjax.data.tokenizers import Tokenizer, make_tokenizer


class Tokens:
    """int32 [L], the ids of a column's text; with `count` K int32 [K,L], of its first K texts in their order.

    Nothing is drawn; the feature `text` draws.

    Args:
      config: of the run.
      name: of the feature and of its field.
      column: of the record, a string or a list of them; None: the feature's name.
      count: K; rows beyond the texts that there are hold the tokenizer's `pad_id`. None: the first text alone.
      required: whether a record without any text is bad; else all its rows hold `pad_id`.
      length: ids L of a row; None: config.model.text.length.
      tokenizer: section of a tokenizer; None: config.tokenizer.

    Raises:
      UserError: a setting that means nothing.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        column: str | None = None,
        count: int | None = None,
        required: bool = True,
        length: int | None = None,
        tokenizer: Mapping[str, Any] | None = None,
    ):
        self.name, self._column, self._required = name, column or name, required
        where = f"config.data.features.{name}.count"
        self.count = None if count is None else whole(count, 1, where)
        self.length = row_length(config, length, name, "length")
        self._section = tokenizer_section(config, tokenizer, name)

    def open(self) -> None:
        """Makes the tokenizer, which may read files."""
        self.tokenizer = make_tokenizer(self._section, self.length)

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The ids, under the feature's name."""
        several = () if self.count is None else (self.count,)
        return {self.name: struct((*several, self.length), np.int32)}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Leaves the texts in `view.captions`.

        Raises:
          BadRecord: a column that is no text, or without texts though they are required.
        """
        del rng
        texts = texts_of(record, self._column)[: self.count or 1]
        if not texts and self._required:
            raise BadRecord(
                "text is empty",
                f"the feature {self.name!r} finds no text in the column {self._column!r}",
            )
        view.captions[self.name] = texts
        ids_KxL = np.full((self.count or 1, self.length), self.tokenizer.pad_id, np.int32)
        if texts:
            ids_KxL[: len(texts)] = encode(self.tokenizer, texts, view)
        return {self.name: ids_KxL[0] if self.count is None else ids_KxL}
