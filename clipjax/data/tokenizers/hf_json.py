"""Any tokenizer that a `tokenizer.json` describes, through the `tokenizers` library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from clipjax.data.packages import FILES, package_file
from clipjax.data.tokenizers.clean import check_clean, cleaner
from clipjax.data.tokenizers.rows import (
    OfFile,
    Rows,
    checked_id,
    checked_length,
    checked_texts,
    save_once,
)
from clipjax.errors import UserError

FILE_NAME = "tokenizer.json"


class HFTokenizer(OfFile):
    """Tokenizer of a `tokenizer.json`, padded on the right to `length`.

    A text that is too long loses its own last tokens and keeps the special ones, as in transformers ("[CLS] first
    words [SEP]"). What the file itself says of truncation and of the padded length is ignored. docs/tokenizers.md has
    the settings of the usual families.

    Args:
      source: a path to a `tokenizer.json`, or "minilm-l6-v2", the one in that model's package.
      length: of every row of token ids.
      pad_id: needed only where the file does not name its padding token.
      clean: "none", "lower", "lower_ascii" or "canonicalize" (clipjax.data.tokenizers.clean), before what the file
        itself does to a text.
      repair: repair the text before that, as open_clip does.
      file_specials: put around a text what the file says (its `post_processor`). False for a file that says otherwise
        than the model was trained with, such as Gemma's for SigLIP 2.
      bos_id: an id at the start of every text, before what the file adds.
      eos_id: an id at the end of every text, after what the file adds.

    Raises:
      UserError: no such file, not a tokenizer, no padding token known, too short a length, or a wrong setting.
    """

    kind = "hf_json"

    def __init__(
        self,
        source: str | Path,
        length: int,
        pad_id: int | None = None,
        clean: str = "none",
        repair: bool = False,
        file_specials: bool = True,
        bos_id: int | None = None,
        eos_id: int | None = None,
    ):
        check_clean(clean, self.kind)
        named = f"{source}-tokenizer"
        path = package_file(named) if named in FILES else Path(source)
        try:
            self._json = path.read_bytes()
        except OSError as error:
            raise UserError(f"The tokenizer {path} cannot be read: {error.strerror}.") from error
        try:
            self._tokenizer = _tokenizer(self._json)
            padding = json.loads(self._json).get("padding") or {}
        except Exception as error:  # The library raises plain Exception.
            raise UserError(f"{path} is not a tokenizer.json: {error}.") from error
        ids = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = max(ids) + 1
        if pad_id is None and (pad_id := padding.get("pad_id")) is None:
            raise UserError(f"{path} does not name its padding token; set pad_id.")
        self.pad_id = checked_id("pad_id", pad_id, ids, path)
        self._settings = {
            "clean": clean,
            "repair": bool(repair),
            "file_specials": bool(file_specials),
            "bos_id": bos_id,
            "eos_id": eos_id,
        }
        before, after = self._file_specials(path) if file_specials else ((), ())
        if bos_id is not None:
            before = (checked_id("bos_id", bos_id, ids, path), *before)
        if eos_id is not None:
            after = (*after, checked_id("eos_id", eos_id, ids, path))
        self.length = checked_length(length, len(before + after) + 1, path)
        self._rows = Rows(length, self.pad_id, before, after)

    def _file_specials(self, path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the file puts before and after a text, by what it makes of one."""
        for probe in ("a", *self._tokenizer.get_vocab(with_added_tokens=False)):
            own = self._tokenizer.encode(probe, add_special_tokens=False).ids
            if own:  # Not all vocabularies have a token for every text.
                break
        whole = self._tokenizer.encode(probe)
        n = (*whole.special_tokens_mask, 0).index(0)
        before, after = tuple(whole.ids[:n]), tuple(whole.ids[n + len(own) :])
        if [*before, *own, *after] != whole.ids:
            raise UserError(
                f"{path} does more to a text than to put tokens around it; set file_specials=False, "
                "bos_id and eos_id."
            )
        return before, after

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        clean = cleaner(self._settings["clean"], self._settings["repair"])
        cleaned = [clean(text) for text in checked_texts(texts, self.kind)]
        encodings = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def save(self, directory: Path) -> dict[str, Any]:
        """Writes the file, byte for byte, into `directory`; returns the config that `load` takes.

        Raises:
          UserError: the directory already holds another tokenizer.json.
        """
        save_once(directory / FILE_NAME, self._json)
        config = {"kind": self.kind, "file": FILE_NAME, "length": self.length}
        return config | {"pad_id": self.pad_id} | self._settings

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_tokenizer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tokenizer = _tokenizer(self._json)


def _tokenizer(content: bytes) -> Tokenizer:
    tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
