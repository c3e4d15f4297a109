"""Writes `.npz` files tensor by tensor."""

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from clipjax.errors import UserError


def write_npz(
    path: str | Path,
    tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]],
) -> list[Path]:
    """Writes what `numpy.load` reads, uncompressed, with one tensor in memory at a time.

    bfloat16, which numpy's files have no name for, is written as two raw bytes, as big_vision does.

    Args:
      path: does not exist yet.
      tensors: (key, shape, dtype, function that gives the array).

    Raises:
      UserError: the file exists or cannot be written. No part of it is left then.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{str(path)!r} exists already; remove it, or choose another name.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, _, _, read in tensors:
                array = np.asanyarray(read())
                if array.dtype.name == "bfloat16":
                    array = array.view("V2")
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return [path]
