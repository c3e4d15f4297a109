"""The model's own tensors in a file that may hold a whole training."""

from typing import NamedTuple

from clipjax.convert.files.tensor_file import Tensor, TensorFile
from clipjax.errors import UserError
from clipjax.registry import nearest

# Dicts of a torch file that are a model, in the order in which they are looked for.
_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "weights")
# What wrappers put before every key: DistributedDataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MAX_NAMES = 20  # in a message


class StateDict(NamedTuple):
    """A model's tensors.

    Attributes:
        tensors: key -> tensor, in the file's order.
        entry: where they were in the file: "", "state_dict", "params", ...
        stripped: prefixes that were taken off all keys, outermost first.
    """

    tensors: dict[str, Tensor]
    entry: str
    stripped: tuple[str, ...]


def state_dict(file: TensorFile, entry: str | None = None) -> StateDict:
    """Picks the model's tensors, and takes off what wrappers put before every key.

    A training file of torch is a dict in which the model is an entry ("state_dict", "model", ...); one of big_vision
    has it under "params/", or, in old files, "opt/target/". Training state beside it is not read.

    Args:
        file: of `open_tensors` or `open_sharded`.
        entry: the dict to take, where the file has several ("state_dict_ema"); by default the model is looked for.

    Raises:
        UserError: there are no tensors, no such entry, or several dicts with tensors and none that is known.
    """
    separator = "/" if file.kind == "npz" else "."
    if entry is None:
        entry = _npz_entry(file) if file.kind == "npz" else _torch_entry(file)
    start = f"{entry}{separator}" if entry else ""
    tensors = {
        key.removeprefix(start): tensor
        for key, tensor in file.tensors.items()
        if key.startswith(start)
    }
    if not tensors:
        if entry:
            hint = nearest(entry, file.dicts[:_MAX_NAMES]) if file.dicts else ""
            raise UserError(f"{file.path} has no tensors under {entry!r}{hint}.")
        raise UserError(f"{file.path} holds no tensors.")
    stripped = []
    while prefix := _common_prefix(tensors):
        stripped.append(prefix)
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return StateDict(tensors, entry, tuple(stripped))


def _npz_entry(file: TensorFile) -> str:
    for entry in ("params", "opt/target"):
        if any(key.startswith(f"{entry}/") for key in file.tensors):
            return entry
    return ""


def _torch_entry(file: TensorFile) -> str:
    """The dict that is a model; one in another (`{"state_dict": {"weights": ...}}`) counts."""
    dicts = set(file.dicts)
    entry, start = "", ""
    while known := [start + name for name in _ENTRIES if start + name in dicts]:
        entry = known[0]
        start = f"{entry}."
    if entry or not all(_inside(key, dicts) for key in file.tensors):
        return entry
    tops = sorted(name for name in dicts if not _inside(name, dicts))
    if len(tops) > 1:
        names = ", ".join(tops[:_MAX_NAMES])
        raise UserError(
            f"{file.path} has several dicts with tensors ({names}); say which is the model."
        )
    return tops[0] if tops else ""


def _inside(key: str, dicts: set[str]) -> bool:
    return any(key[:end] in dicts for end, letter in enumerate(key) if letter == ".")


def _common_prefix(tensors: dict[str, Tensor]) -> str | None:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) and key != prefix for key in tensors):
            return prefix
    return None
