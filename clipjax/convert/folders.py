"""What lies at a path that a user names: which file holds the tensors, and what is beside it."""

import json
from pathlib import Path
from typing import Any

from clipjax.convert.files import open_sharded, open_tensors, state_dict
from clipjax.convert.formats.base import Weights
from clipjax.errors import UserError

# Names of weights in the directories of open_clip, transformers and timm, best first.
_NAMES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# A file with one of these beside it is described there.
CONFIGS = ("open_clip_config.json", "config.json")

# Configs and tokenizers are small; anything longer is something else.
_LARGEST_JSON = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError if it is not one."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(f"{path} is too large to be a description of a model.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object.")
    return found


def open_weights(path: str | Path) -> Weights:
    """Opens a file of tensors, or the one of a directory. Reads names and shapes only.

    Raises:
      UserError: nothing is there, several files could be meant, or the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no checkpoint at {str(path)!r}.")
    file = _in_directory(path) if path.is_dir() else path
    described = any((file.parent / name).is_file() for name in CONFIGS)
    opened = open_sharded(file) if file.name.endswith(".index.json") else open_tensors(file)
    found = state_dict(opened)
    folder = file.parent if path.is_dir() or described else None
    return Weights(path, opened.kind, found.tensors, folder, opened.other)


def _in_directory(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    kinds = (".safetensors", ".npz", ".pt", ".pth", ".bin")
    found = sorted(p for p in folder.iterdir() if p.suffix in kinds and p.is_file())
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"{str(folder)!r} is not a checkpoint: neither a run of clipjax, nor a directory with weights "
            f"({', '.join(kinds)})."
        )
    names = ", ".join(p.name for p in found[:5])
    raise UserError(
        f"The directory {str(folder)!r} holds several files of weights, {names}; name one."
    )
