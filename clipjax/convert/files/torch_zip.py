"""What `torch.save` (since 1.6) and `torch.jit.save` write: a zip archive with one pickle and a record a storage.

The archive has one folder, in it `data.pkl` and the storages as `data/0`, `data/1`, ..., uncompressed; TorchScript
adds `constants.pkl` and the code of its modules, which is not looked at. OpenAI's CLIP files are such archives.
"""

import numpy as np

from clipjax.convert.files import torch_tree, zips
from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.pickles import MAX_BYTES, Machine
from clipjax.convert.files.tensor_file import Refused, TensorFile, shown
from clipjax.convert.files.torch_objects import SYMBOLS, Storage, persistent

PICKLE = "data.pkl"


def folder(entries: dict[str, zips.Entry]) -> str | None:
    """The folder of a torch archive, with its slash; None if it is none."""
    folders = [name.removesuffix(PICKLE) for name in entries if name.endswith(f"/{PICKLE}")]
    folders = [name for name in folders if name.count("/") == 1]
    return folders[0] if len(folders) == 1 else None


def open_torch_zip(file: MappedFile, entries: dict[str, zips.Entry]) -> TensorFile:
    """Opens an archive for which `folder` is not None.

    Raises:
        Refused: anything in it is not as torch writes it.
    """
    root = folder(entries)
    if any(not name.startswith(root) for name in entries):
        raise Refused("is a zip archive with more than torch's folder in it")
    order = entries.get(f"{root}byteorder")
    if order and zips.head(file, order, 10) != b"little":
        raise Refused("was not written on a little-endian machine; save it anew on one")
    scripted = f"{root}constants.pkl" in entries

    def record(storage: Storage) -> zips.Entry:
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise Refused(f"has no record for the storage {shown(storage.key)}")
        if entries[name].deflated:
            raise Refused(f"has a compressed record {shown(name)}; torch.save writes none")
        return entries[name]

    def check_storage(storage: Storage) -> None:
        torch_tree.check_bytes(storage, record(storage).size)

    def read_storage(storage: Storage, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
        return file.array(record(storage).start + offset * dtype.itemsize, dtype, count)

    entry = entries[f"{root}{PICKLE}"]
    if entry.size > MAX_BYTES:
        raise Refused("has a pickle that is too long")
    prefix = "__torch__." if scripted else None
    value = Machine(zips.stored(file, entry), 0, SYMBOLS, persistent, prefix).load()
    if scripted:
        return torch_tree.from_module(file.path, value, check_storage, read_storage)
    return torch_tree.from_dict(file.path, "torch", value, check_storage, read_storage)
