"""Any tokenizer that a `tokenizer.json` describes, through the `tokenizers` library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from clipjax.errors import UserError
from clipjax.packages import FILES, package_file

FILE_NAME = "tokenizer.json"


class HFTokenizer:
    """Tokenizer with its own special tokens, padded on the right to `length`.

    Truncation keeps the special tokens, as the original does ("[CLS] first words [SEP]"). What the
    file itself says of truncation and of the padded length is ignored.

    Args:
        source: a path to a `tokenizer.json`, or "minilm-l6-v2", the one in that model's package.
        length: of every row of token ids.
        pad_id: needed only where the file does not name its padding token.

    Raises:
        UserError: no such file, not a tokenizer, no padding token known, or too short a length.
    """

    kind = "hf_json"

    def __init__(self, source: str | Path, length: int, pad_id: int | None = None):
        named = f"{source}-tokenizer"
        path = package_file(named) if named in FILES else Path(source)
        try:
            self._json = path.read_bytes()
        except OSError as error:
            raise UserError(f"The tokenizer {path} cannot be read: {error.strerror}.") from error
        try:
            self._tokenizer = Tokenizer.from_str(self._json.decode("utf-8"))
            padding = json.loads(self._json).get("padding") or {}
        except Exception as error:  # The library raises plain Exception.
            raise UserError(f"{path} is not a tokenizer.json: {error}.") from error
        ids = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.length = int(length)
        self.vocab_size = max(ids) + 1
        self.pad_id = padding.get("pad_id") if pad_id is None else int(pad_id)
        if self.pad_id not in ids:
            raise UserError(
                f"{path} has no token with the padding id {self.pad_id}; set the right pad_id."
            )
        shortest = self._tokenizer.num_special_tokens_to_add(is_pair=False) + 1
        if self.length < shortest:
            raise UserError(
                f"A text length of {self.length} leaves no room beside the special tokens of "
                f"{path}; use at least {shortest}."
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._truncating = Tokenizer.from_str(self._tokenizer.to_str())
        self._truncating.enable_truncation(self.length)

    def encode(self, text: str) -> list[int]:
        """All token ids of one text, special tokens included, neither truncated nor padded."""
        return self._tokenizer.encode(text).ids

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids, int32 [n, length], truncated and padded."""
        ids_NxL = np.full((len(texts), self.length), self.pad_id, np.int32)
        for row, encoding in zip(ids_NxL, self._truncating.encode_batch(list(texts)), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return ids_NxL

    def save(self, directory: Path) -> dict[str, Any]:
        """Writes the file, byte for byte, into `directory`; returns the config that `load` takes.

        Raises:
            UserError: the directory already holds another tokenizer.json.
        """
        path = directory / FILE_NAME
        if path.exists() and path.read_bytes() != self._json:
            raise UserError(f"{path} is another tokenizer's; save this one into another directory.")
        path.write_bytes(self._json)
        return {
            "kind": self.kind,
            "file": FILE_NAME,
            "length": self.length,
            "pad_id": self.pad_id,
        }

    @classmethod
    def load(cls, config: dict[str, Any], directory: Path) -> "HFTokenizer":
        """The tokenizer that `save` wrote into `directory`."""
        return cls(directory / config["file"], config["length"], config["pad_id"])
