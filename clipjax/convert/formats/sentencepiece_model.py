"""What a SentencePiece `.model` says, and the same vocabulary as a tokenizer.json.

The file is a protocol buffer, `ModelProto` of github.com/google/sentencepiece (src/sentencepiece_model.proto), of which
only what is needed is read here, so that nobody has to install protobuf.
"""

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clipjax.errors import UserError

# Numbers of ModelProto's fields and of its enumerations.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID, _BOS_ID, _EOS_ID = 3, 35, 40, 41, 42
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES = 2, 3, 4
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

_SPACE = "▁"


@dataclass(frozen=True)
class SentencePieceModel:
    """A model file.

    Attributes:
      pieces: (text, score, type) by id.
      unigram: whether it is a unigram model; else byte-pair encoding.
      byte_fallback: unknown characters become bytes.
      unk_id: id of what is unknown.
      bos_id: id of the begin of a text, None if there is none.
      eos_id: id of the end of a text, likewise.
      charsmap: table of replaced characters, of the library's own form; may be empty.
      dummy_prefix: a text begins with a space.
      remove_spaces: spaces at the ends and repeated ones go.
    """

    pieces: tuple[tuple[str, float, int], ...]
    unigram: bool
    byte_fallback: bool
    unk_id: int
    bos_id: int | None
    eos_id: int | None
    charsmap: bytes
    dummy_prefix: bool
    remove_spaces: bool

    def id_of(self, piece: str) -> int | None:
        """Id of a piece by its text, None if there is none."""
        return next((i for i, (text, _, _) in enumerate(self.pieces) if text == piece), None)


def read_model(content: bytes) -> SentencePieceModel:
    """Reads a `.model` file.

    Raises:
      UserError: it is none, or of a kind that is neither unigram nor BPE.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(content):
            if number == _PIECE:
                fields = dict(_fields(value))
                score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
                pieces.append((fields.get(1, b"").decode("utf-8"), score, fields.get(3, _NORMAL)))
            elif number == _TRAINER:
                trainer |= dict(_fields(value))
            elif number == _NORMALIZER:
                normalizer |= dict(_fields(value))
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise UserError("The SentencePiece model is damaged.") from error
    kind = trainer.get(_MODEL_TYPE, _UNIGRAM)
    if not pieces or kind not in (_UNIGRAM, _BPE):
        raise UserError("The SentencePiece model is neither a unigram model nor one of BPE.")
    return SentencePieceModel(
        tuple(pieces),
        kind == _UNIGRAM,
        bool(trainer.get(_BYTE_FALLBACK, 0)),
        trainer.get(_UNK_ID, 0),
        _id(trainer.get(_BOS_ID, 1)),
        _id(trainer.get(_EOS_ID, 2)),
        normalizer.get(_CHARSMAP, b""),
        bool(normalizer.get(_DUMMY_PREFIX, 1)),
        bool(normalizer.get(_REMOVE_SPACES, 1)),
    )


def _id(number: int) -> int | None:
    return number if number < 2**31 else None  # -1, as an unsigned number of 64 bits


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields; bytes for strings, messages and floats."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
        elif kind in (1, 2, 5):
            size, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _varint(content, at)
            value, at = content[at : at + size], at + size
            if len(value) != size:
                raise ValueError("cut off")
        else:
            raise ValueError(f"wire type {kind}")
        yield key >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def to_tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """The tokenizer.json with the same vocabulary and the same splits.

    The `tokenizers` library applies the table of characters to whole graphemes, SentencePiece to characters: texts with
    accents or Hangul letters written apart may differ. Control tokens spelled out in a text are the tokens themselves.
    """
    names = [text for text, _, _ in model.pieces]
    normalizers: list[dict[str, Any]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode("ascii")
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_spaces:
        normalizers += [_replace({"Regex": " +"}, " "), _replace({"Regex": r"\A | \z"}, "")]
    if model.dummy_prefix:
        normalizers.append({"type": "Prepend", "prepend": _SPACE})
    normalizers.append(_replace({"String": " "}, _SPACE))
    if model.unigram:
        vocabulary = {
            "type": "Unigram",
            "unk_id": model.unk_id,
            "vocab": [[text, score] for text, score, _ in model.pieces],
            "byte_fallback": model.byte_fallback,
        }
    else:
        vocabulary = {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[model.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(names)},
            "merges": _merges(model),
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                # Of spaces, for one, which the text has only once it is normalised; but the prefix is no part of them.
                "normalized": kind == _USER_DEFINED and not model.dummy_prefix,
                "special": kind != _USER_DEFINED,
            }
            for i, (text, _, kind) in enumerate(model.pieces)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace({"String": _SPACE}, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * model.dummy_prefix),
            ],
        },
        "model": vocabulary,
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _merges(model: SentencePieceModel) -> list[list[str]]:
    """Every way to join two pieces to a third, the one of the highest score first."""
    known = {text for text, _, kind in model.pieces if kind == _NORMAL}
    whole = [(score, text) for text, score, kind in model.pieces if kind == _NORMAL]
    whole.sort(key=lambda piece: -piece[0])
    merges = []
    for _, text in whole:
        for i in range(1, len(text)):
            if text[:i] in known and text[i:] in known:
                merges.append([text[:i], text[i:]])
    return merges
