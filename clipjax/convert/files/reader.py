"""Recognises a weight file from its content and opens it."""

from pathlib import Path

from clipjax.convert.files import npz, safetensors_reader, torch_legacy, torch_zip, zips
from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.tensor_file import Refused, TensorFile
from clipjax.errors import UserError

# What people take for weights, by its first bytes (lower-cased), and what to do about it.
_OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file that it stands for; run `git lfs pull`",
    b"<!doctype": "is a web page; download the file again, from its raw address",
    b"<html": "is a web page; download the file again, from its raw address",
    b"\x93numpy": "is a single numpy array; save the arrays of a model together with numpy.savez",
    b"\x80": "is a pickle that torch.save did not write; where it was made, save a state_dict() with safetensors",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"{": "is JSON; an index of shards is opened with `open_sharded`",
}


def open_tensors(path: str | Path) -> TensorFile:
    """Opens a weight file; its tensors are read later, one by one.

    The format is told from the content: safetensors; torch.save's zip archives and its files from before 1.6;
    TorchScript archives; numpy's .npz. Nothing in the file is run, and no name in it is imported.

    Args:
        path: a file on a local disk, which must not change while it is read.

    Raises:
        UserError: the path cannot be read, the file is of no known format, or it is damaged, truncated or dishonest.
    """
    file = MappedFile(path)
    try:
        return _open(file)
    except Refused as error:
        raise UserError(f"{path} {error}.") from error


def _open(file: MappedFile) -> TensorFile:
    first = file.take(0, min(len(file), 32))
    if first.startswith((zips.LOCAL_HEADER, b"PK\x05\x06")):
        return _open_zip(file)
    if first[:1] == b"\x80" and first[2:].startswith(torch_legacy.FIRST_BYTES):
        return torch_legacy.open_legacy(file)
    if safetensors_reader.header_end(file) is not None:
        return safetensors_reader.open_safetensors(file)
    for start, reason in _OTHERS.items():
        if first.lower().startswith(start):
            raise Refused(reason)
    raise Refused("is no weight file of a known format (safetensors, torch, TorchScript, npz)")


def _open_zip(file: MappedFile) -> TensorFile:
    entries = zips.entries(file)
    if torch_zip.folder(entries) is not None:
        return torch_zip.open_torch_zip(file, entries)
    if all(name.endswith(npz.SUFFIX) for name in entries):
        return npz.open_npz(file, entries)
    raise Refused("is a zip archive, but neither torch's nor numpy's; unpack it first")
