"""SentencePiece models (`.model`, also `.spm`): the vocabularies of SigLIP, SigLIP 2, T5 and others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

FILE_NAME = "sentencepiece.model"
_EOS = ("none", "yes", "sticky")


class SentencePiece(OfFile):
    """Tokenizer of a SentencePiece model, with the rows of big_vision's `tokenize` and `tok`.

    The defaults are those with which SigLIP's checkpoints are used; docs/tokenizers.md has the settings of other
    families. The text of a control token ("</s>") is text like any other, as in the package itself.

    Args:
      source: path to the model file.
      length: of every row of token ids.
      clean: "none", "lower", "lower_ascii" or "canonicalize" (clipjax.data.tokenizers.clean).
      repair: repair the text first, as open_clip does.
      bos: begin every text with the model's begin-of-text id.
      eos: "sticky" (every text ends with the end-of-text id, a text that is cut too), "yes" (a text that is cut
        loses it) or "none".
      pad_id: what follows a text; None for the model's end-of-text id, as SigLIP pads.

    Raises:
      UserError: the package is not installed, there is no such file, it is no SentencePiece model, it lacks an id that
        is asked for, or a setting is wrong.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        source: str | Path,
        length: int,
        clean: str = "canonicalize",
        repair: bool = False,
        bos: bool = False,
        eos: str = "sticky",
        pad_id: int | None = None,
    ):
        check_clean(clean, self.kind)
        if eos not in _EOS:
            known = ", ".join(map(repr, _EOS))
            raise UserError(f"{self.kind}: eos is {eos!r}; it must be one of {known}.")
        path = Path(source)
        try:
            self._model = path.read_bytes()
        except OSError as error:
            raise UserError(f"The tokenizer {path} cannot be read: {error.strerror}.") from error
        self._clean, self._repair, self._bos, self._eos = clean, bool(repair), bool(bos), eos
        self._processor = _processor(self._model, str(path))
        self.vocab_size = self._processor.vocab_size()
        bos_id, eos_id = self._processor.bos_id(), self._processor.eos_id()
        if bos and bos_id < 0:
            raise UserError(f"{path} has no begin-of-text token; set bos=False.")
        if eos != "none" and eos_id < 0:
            raise UserError(f"{path} has no end-of-text token; set eos='none' and pad_id.")
        if pad_id is None and eos_id < 0:
            raise UserError(f"{path} has no end-of-text token to pad with; set pad_id.")
        before = (bos_id,) if bos else ()
        after = () if eos == "none" else (eos_id,)
        self.length = checked_length(length, len(before + after) + 1, path)
        self.pad_id = checked_id(
            "pad_id", eos_id if pad_id is None else pad_id, range(self.vocab_size), path
        )
        self._rows = Rows(length, self.pad_id, before, after, sticky=eos == "sticky")

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        clean, encode = cleaner(self._clean, self._repair), self._processor.encode
        return [encode(clean(text)) for text in checked_texts(texts, self.kind)]

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def save(self, directory: Path) -> dict[str, Any]:
        """Writes the model, byte for byte, into `directory`; returns the config that `load` takes.

        Raises:
          UserError: the directory already holds another model.
        """
        save_once(directory / FILE_NAME, self._model)
        return {
            "kind": self.kind,
            "file": FILE_NAME,
            "length": self.length,
            "clean": self._clean,
            "repair": self._repair,
            "bos": self._bos,
            "eos": self._eos,
            "pad_id": self.pad_id,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_processor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._processor = _processor(self._model, "The pickled tokenizer")


def _processor(model: bytes, named: str) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "The tokenizer kind 'sentencepiece' needs the package sentencepiece; "
            "run: pip install 'clipjax[sentencepiece]'."
        ) from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except Exception as error:  # The library raises RuntimeError, and with other versions others.
        raise UserError(f"{named} is not a SentencePiece model.") from error
    return processor
