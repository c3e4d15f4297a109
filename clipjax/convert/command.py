"""`clipjax convert`: a checkpoint of one format as one of another."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from clipjax import checkpoint
from clipjax.config import to_json
from clipjax.convert import formats, orbax
from clipjax.convert.express import check_parts
from clipjax.convert.files import write_safetensors
from clipjax.convert.files.npz_writer import write_npz
from clipjax.convert.files.torch_writer import write_torch
from clipjax.convert.parts import without
from clipjax.convert.source import OURS, Source, cast, open_source, resized
from clipjax.data.tokenizers.absent import Absent
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.registry import nearest
from clipjax.workdir import versions

DTYPES = ("float32", "bfloat16", "float16")


def convert(
    source: str,
    target: str,
    *,
    form: str | None = None,
    to: str = OURS,
    options: formats.Options | None = None,
    left_out: Sequence[str] = (),
    dtype: str | None = None,
    size: int | None = None,
    length: int | None = None,
    mesh: Mapping[str, int] | None = None,
    max_shard_bytes: int | None = None,
) -> int:
    """Reads a checkpoint and writes it, parameter by parameter.

    Args:
      source: what `clipjax.load` takes.
      target: a directory that does not exist yet, or is empty.
      form: format of the source; None: recognised by its content.
      to: format of the target.
      options: what the source does not say itself.
      left_out: parts of the model that are not written, see `parts.without`.
      dtype: of all parameters; None keeps each as it is.
      size, length: of images and texts, where they are to be others than the source's.
      mesh: sizes of mesh axes; a target of clipjax is then written in the pieces that such a mesh reads.
      max_shard_bytes: largest file of tensors in the target; None: one file.

    Returns:
      0, when the target is whole.

    Raises:
      UserError: the source is not understood, the target format cannot express it, or the target exists. Nothing is
        left at the target then.
    """
    if to != OURS:
        formats.get(to)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}{nearest(dtype, DTYPES)}.")
    if to == OURS and max_shard_bytes is not None:
        raise UserError(
            "--max-shard-size is for files of tensors; clipjax's own are split as --mesh says."
        )
    if to != OURS and mesh:
        raise UserError(
            "--mesh is for clipjax's own checkpoints; other formats have --max-shard-size."
        )
    folder = Path(target)
    if "://" not in target:
        folder = folder.expanduser().absolute()
    orbax.check_new(epath.Path(target))
    whole = open_source(source, form, options)
    found = cast(resized(without(whole, left_out), size, length), dtype)
    for note in found.notes:
        print(f"Note: {note}")
    if to == OURS:
        _write_ours(found, epath.Path(target).absolute(), mesh)
    else:
        write_theirs(found, folder, to, max_shard_bytes)
    parameters = sum(int(np.prod(t.shape, dtype=np.int64)) for t in found.params.values())
    more = (
        f"{len(whole.params) - len(found.params)} tensors left out as asked, no other"
        if left_out
        else "no tensor"
    )
    print(
        f"{target}: {found.format} -> {to}, {parameters / 1e6:.1f} M parameters, {more} of the source left over."
    )
    return 0


def _write_ours(source: Source, target: epath.Path, mesh: Mapping[str, int] | None) -> None:
    if source.tokenizer is None:
        packed: dict[str, Any] = {"config": None, "files": {}}
    else:
        packed = checkpoint.pack_tokenizer(source.tokenizer)
    meta = {
        "samples": source.meta.get("samples", 0),
        "config": json.loads(to_json(source.config)),
        "versions": versions(),
        "modules": source.meta.get("modules", {}),
        "origin": {
            "format": source.meta.get("origin", {}).get("format", source.format),
            "resample": source.resample,
            "hints": dict(source.hints),
        },
    }
    shardings = None
    if mesh:
        devices = make_mesh(mesh, jax.devices("cpu"))
        shardings = orbax.shardings_of(source.config, devices)
    if target.exists():
        target.rmdir()  # it is empty
    orbax.write(target, source.params, meta, packed, shardings)


def write_theirs(source: Source, target: Path, to: str, max_shard_bytes: int | None) -> None:
    """Writes a directory of another format, whole or not at all; see `convert`."""
    tokenizer = None if isinstance(source.tokenizer, Absent) else source.tokenizer
    check_parts(source.config.model, to)
    export = formats.get(to).export(source.config, tokenizer, source.hints)
    for note in export.notes:
        print(f"Note: {note}")
    if max_shard_bytes is not None and not export.weights.endswith(".safetensors"):
        raise UserError(
            f"--max-shard-size is for safetensors; {to} has one file, {export.weights}."
        )
    tensors = export.table.tensors(source.params)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        for name, content in export.files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
        rows = ((key, t.shape, t.dtype, t.read) for key, t in tensors.items())
        if export.weights.endswith(".npz"):
            write_npz(partial / export.weights, rows)
        elif export.weights.endswith(".pt"):
            write_torch(partial / export.weights, rows)
        elif max_shard_bytes is None:
            write_safetensors(partial / export.weights, rows, export.metadata)
        else:
            write_safetensors(partial, rows, export.metadata, max_shard_bytes)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise UserError(f"{str(target)!r} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
