"""What every reader of a weight file gives back, and the checks that they share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MAX_TENSORS = 100_000  # a ViT-bigG CLIP has 1,200; a mixture of experts some ten thousand
MAX_KEY_LENGTH = 1000
MAX_RANK = 32


class Refused(Exception):
    """Why a file is not read, as the rest of a sentence that begins with its path."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file, not yet read.

    Attributes:
        shape: its shape.
        dtype: its dtype, little-endian; bfloat16 and float8 are those of `ml_dtypes`.
        read: reads this tensor alone: an array of that shape and dtype in C order, often a read-only view of the
            memory-mapped file. It raises UserError where the bytes do not hold what the file promised.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The bytes of the array that `read` returns."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file (or of a set of shards) and the plain values beside them.

    Attributes:
        path: the file, or the index of the shards.
        kind: "safetensors", "torch", "torchscript", "torch_legacy" or "npz".
        tensors: key -> tensor. Dicts and lists inside a torch file are joined with dots: `{"model": {"w": ...}}` has
            the key "model.w".
        other: plain values beside the tensors, nested as in the file: str, int, float, bool, None and bytes in dicts,
            lists, tuples and sets. Dtypes and devices of torch are strings, and an `argparse.Namespace` is a dict.
        metadata: the strings in the header of a safetensors file.
        dicts: keys of the dicts with tensors in them that a torch file has: ("model",) above.
        skipped: names of training state at the top of a torch file (optimizer, scaler, ...), which is in neither
            `tensors` nor `other`.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    other: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    dicts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def read_all(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Reads every tensor: key -> array. What is a view of the file stays one."""
    return {key: tensor.read() for key, tensor in tensors.items()}


def shown(text: Any) -> str:
    """A name out of a file, fit for a message: quoted, without control characters, not too long."""
    text = text if isinstance(text, str) else type(text).__name__
    return repr(text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}")


def natural(value: Any) -> bool:
    """Whether a value is an int that a length or an offset may be."""
    return type(value) is int and 0 <= value < 2**63


def check_shape(key: str, shape: Any, dtype: np.dtype) -> int:
    """The number of elements of a shape that a file names.

    Raises:
        Refused: it is no shape, or numpy could not hold it even if it is empty.
    """
    if not isinstance(shape, tuple | list) or not all(natural(n) for n in shape):
        raise Refused(f"gives the tensor {shown(key)} a malformed shape")
    # numpy refuses (0, 2**62) although it holds nothing.
    if len(shape) > MAX_RANK or math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**62:
        raise Refused(f"gives the tensor {shown(key)} an impossible shape")
    return math.prod(shape)


def check_key(key: Any, count: int) -> None:
    """Bounds the length of keys and the number of tensors, for what holds them in memory.

    Raises:
        Refused: the key is no string or too long, or it is one of too many.
    """
    if not isinstance(key, str) or len(key) > MAX_KEY_LENGTH:
        raise Refused(
            f"has a tensor whose key is not a string of at most {MAX_KEY_LENGTH} characters"
        )
    if count >= MAX_TENSORS:
        raise Refused(f"has more than {MAX_TENSORS} tensors")
