"""What the kinds of tokenizers share: rows of one length, checks of what the user gave, and saving."""

import dataclasses
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from clipjax.errors import UserError


def checked_texts(texts: Sequence[str], kind: str) -> list[str]:
    """The texts as a list; one str is taken as a list of one, as open_clip takes it.

    Raises:
      UserError: something else than str among them.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{kind}: a text must be a str, not {type(text).__name__}.")
    return texts


def checked_length(length: Any, shortest: int, where: object) -> int:
    """The length of a row; UserError unless it is a whole number with room for `shortest` ids."""
    if isinstance(length, bool) or not isinstance(length, int):
        raise UserError(f"A text length must be a whole number, not {length!r}.")
    if length < shortest:
        raise UserError(
            f"A text length of {length} leaves no room beside the special tokens of {where}; "
            f"use at least {shortest}."
        )
    return length


def checked_id(setting: str, value: Any, ids: Container[int], where: object) -> int:
    """A token id of a config; UserError unless the vocabulary of the file `where` has it."""
    if isinstance(value, bool) or not isinstance(value, int | None) or value not in ids:
        raise UserError(
            f"{where} has no token with the {setting} {value!r}; set the right {setting}."
        )
    return value


def save_once(path: Path, content: bytes) -> None:
    """Writes a vocabulary's file; UserError if another one is there."""
    if path.exists() and path.read_bytes() != content:
        raise UserError(f"{path} is another tokenizer's; save this one into another directory.")
    path.write_bytes(content)


@dataclasses.dataclass(frozen=True)
class Rows:
    """How a text's own ids become a row: `before` + ids + `after`, cut at the end, padded on the right.

    Attributes:
      length: of a row.
      pad_id: what follows the text.
      before: ids at the start of every text.
      after: ids at the end of every text.
      sticky: a text that is too long loses its own last ids and keeps `after`; otherwise the row is cut, and `after`
        is what is lost first.
    """

    length: int
    pad_id: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    sticky: bool = True

    def whole(self, ids: Iterable[int]) -> list[int]:
        """One text's ids with what surrounds them, not cut."""
        return [*self.before, *ids, *self.after]

    def own(self, ids: list[int]) -> list[int]:
        """A text's own ids: without padding, `before`, and as much of `after` as is there."""
        end = len(ids)
        while end and ids[end - 1] == self.pad_id:
            end -= 1
        ids = ids[:end]
        if self.before and ids[: len(self.before)] == list(self.before):
            ids = ids[len(self.before) :]
        for n in range(len(self.after), 0, -1):  # padding may be the end's own id
            if ids[-n:] == list(self.after[:n]):
                return ids[:-n]
        return ids

    def fill(self, texts: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Rows, int32 [n, length], and which of the texts were cut, bool [n]."""
        ids_NxL = np.full((len(texts), self.length), self.pad_id, np.int32)
        cut_N = np.zeros(len(texts), bool)
        tail = self.after if self.sticky else ()
        for i, text in enumerate(texts):
            ids = self.whole(text)
            if len(ids) > self.length:
                cut_N[i] = True
                ids = [*ids[: self.length - len(tail)], *tail]
            ids_NxL[i, : len(ids)] = ids
        return ids_NxL, cut_N


class OfFile:
    """A tokenizer of a file: a subclass has `_ids`, a text's own ids, `_rows`, what becomes of them, and `_text`."""

    _rows: Rows
    vocab_size: int

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """All token ids of one text, those of its start and end included, neither cut nor padded."""
        return self._rows.whole(self._ids([text])[0])

    def encode_rows(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids as `__call__` gives, int32 [n, length], and which texts were cut, bool [n]."""
        return self._rows.fill(self._ids(texts))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids, int32 [n, length], cut and padded. One str is taken as a list of one."""
        return self.encode_rows(texts)[0]

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids of `encode` or of a row of `__call__`, without padding and what surrounds a text.

        Raises:
          UserError: an id outside of the vocabulary.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"The tokenizer has no id {i}; its ids are 0 to {self.vocab_size - 1}."
                )
        return self._text(self._rows.own(ids))

    @classmethod
    def load(cls, config: dict[str, Any], directory: Path) -> Self:
        """The tokenizer that `save` wrote into `directory`; an older version may have written fewer settings."""
        settings = {name: value for name, value in config.items() if name not in ("kind", "file")}
        return cls(directory / config["file"], **settings)
