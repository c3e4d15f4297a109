"""Writes safetensors files, one tensor in memory at a time."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipjax.convert.files.safetensors_reader import DTYPES, MAX_HEADER
from clipjax.convert.files.tensor_file import shown
from clipjax.errors import UserError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
NAME = "model"  # of sharded files, as transformers looks for them


class _Item(NamedTuple):
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path_or_dir: str | Path,
    tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]],
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> list[Path]:
    """Writes tensors as safetensors: wider dtypes first, so that all are aligned, and else in the order given.

    Given by name, they lie as the library lays them. The order is the caller's, as it may be what makes reading cheap.

    Each file is written under a temporary name, flushed to the disk, and renamed when it is whole; of several, the
    index is the last.

    Args:
        path_or_dir: the file, or with `max_shard_bytes` the directory.
        tensors: (key, shape, dtype, read); each `read` is called once, and may be slow.
        metadata: strings for the header, such as {"format": "pt"}.
        max_shard_bytes: begin another file before tensors exceed this; a larger tensor has a file of its own. In the
            directory are then `model.safetensors`, or, if it takes more than one, `model-00001-of-0000N.safetensors`
            and Hugging Face's `model.safetensors.index.json`.

    Returns:
        The files, in order; the index last.

    Raises:
        UserError: a file exists already or cannot be written, two tensors have one key, a dtype that the format does
            not have.
        ValueError: a `read` returned another shape or dtype than announced.
    """
    items = [_Item(key, tuple(shape), np.dtype(dtype), read) for key, shape, dtype, read in tensors]
    _check(items)
    if max_shard_bytes is None:
        shards, files = [items], [Path(path_or_dir)]
        index = None
    else:
        shards = _split(items, max_shard_bytes)
        files = [Path(path_or_dir) / name for name in _shard_names(len(shards))]
        index = Path(path_or_dir) / f"{NAME}.safetensors.index.json" if len(shards) > 1 else None
    everything = [*files, *([index] if index else [])]
    for file in everything:
        if os.path.lexists(file):
            raise UserError(f"{file} exists already; remove it, or choose another place.")
    _make_directory(everything[0].parent)
    temporary = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in everything}
    try:
        for file, shard in zip(files, shards, strict=True):
            _write(temporary[file], shard, dict(metadata or {}))
        if index:
            _write_index(temporary[index], dict(zip(files, shards, strict=True)))
        for file in everything:
            temporary[file].rename(file)
        _flush_directory(everything[0].parent)
    except OSError as error:
        raise UserError(f"{path_or_dir} cannot be written: {error.strerror or error}.") from error
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
    return everything


def _check(items: list[_Item]) -> None:
    seen: set[str] = set()
    for key, _, dtype, _ in items:
        if key in seen or key == "__metadata__":
            reason = "given twice" if key in seen else "a name that the format needs itself"
            raise UserError(f"The tensor {shown(key)} cannot be written: it is {reason}.")
        if dtype not in _NAMES:
            raise UserError(
                f"The tensor {shown(key)} cannot be written: safetensors has no dtype {dtype}."
            )
        seen.add(key)


def _split(items: list[_Item], most: int) -> list[list[_Item]]:
    shards: list[list[_Item]] = [[]]
    size = 0
    for item in items:
        if shards[-1] and size + item.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [f"{NAME}.safetensors"]
    return [f"{NAME}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _header(items: list[_Item], metadata: dict[str, str]) -> bytes:
    """The header with its length; padded so that the tensors begin at a multiple of 8."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for item in items:
        end = offset + item.nbytes
        header[item.key] = {
            "dtype": _NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UserError(
            f"The header would have {len(text)} bytes; safetensors allows {MAX_HEADER}."
        )
    return len(text).to_bytes(8, "little") + text


def _write(path: Path, items: list[_Item], metadata: dict[str, str]) -> None:
    # The largest dtypes first: so every tensor is aligned, whatever the shapes.
    items = sorted(items, key=lambda item: -_RANKS[item.dtype])
    with path.open("xb") as file:
        file.write(_header(items, metadata))
        for item in items:
            array = np.asarray(item.read())
            if array.shape != item.shape or array.dtype != item.dtype:
                raise ValueError(
                    f"{item.key} was announced as {item.dtype}{list(item.shape)} and is "
                    f"{array.dtype}{list(array.shape)}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _write_index(path: Path, shards: dict[Path, list[_Item]]) -> None:
    weight_map = {item.key: file.name for file, items in shards.items() for item in items}
    total = sum(item.nbytes for items in shards.values() for item in items)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory} is not a directory that can be written: {error.strerror}."
        ) from error


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
