"""In place of a tokenizer that a checkpoint came without: it knows its rows, and refuses texts."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from clipjax.errors import UserError


class Absent:
    """See the module.

    Args:
      length: of a row.
      vocab_size: number of ids that the model knows.
    """

    kind: ClassVar[str] = "absent"
    pad_id: ClassVar[int] = 0

    def __init__(self, length: int, vocab_size: int):
        self.length, self.vocab_size = length, vocab_size

    def _refuse(self) -> UserError:
        return UserError(
            "The checkpoint came without a tokenizer, so texts cannot be embedded; use encode_tokens with ids, or "
            "convert it with --tokenizer=FILE (a tokenizer.json or a SentencePiece model)."
        )

    def encode(self, text: str) -> list[int]:
        """Raises UserError."""
        raise self._refuse()

    def encode_rows(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Raises UserError, unless there are no texts."""
        if len(texts):
            raise self._refuse()
        return np.zeros((0, self.length), np.int32), np.zeros(0, bool)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Raises UserError, unless there are no texts."""
        return self.encode_rows(texts)[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Raises UserError."""
        raise self._refuse()

    def save(self, directory: Path) -> dict[str, Any]:
        """The config that `load` takes."""
        del directory
        return {"kind": self.kind, "length": self.length, "vocab_size": self.vocab_size}

    @classmethod
    def load(cls, config: dict[str, Any], directory: Path) -> Self:
        """Inverse of `save`."""
        del directory
        return cls(config["length"], config["vocab_size"])
