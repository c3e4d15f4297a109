"""The formats of public checkpoints, one module each. The order is that in which they are recognised."""

import importlib
from typing import Any

from clipjax.convert.formats.base import Description, Export, Format, Options, Weights
from clipjax.errors import UserError
from clipjax.registry import nearest

__all__ = ["FORMATS", "Description", "Export", "Format", "Options", "Weights", "get", "recognise"]

FORMATS = {
    "hugging_face": "clipjax.convert.formats.hugging_face",
    "timm": "clipjax.convert.formats.timm",
    "big_vision": "clipjax.convert.formats.big_vision",
    "clip_moe": "clipjax.convert.formats.clip_moe",
    "long_clip": "clipjax.convert.formats.long_clip",
    "openai": "clipjax.convert.formats.openai",
    "open_clip": "clipjax.convert.formats.open_clip",
}


def get(name: str) -> Any:
    """The format called `name`.

    Raises:
      UserError: there is none (with the nearest name).
    """
    if name not in FORMATS:
        raise UserError(f"There is no checkpoint format {name!r}{nearest(name, FORMATS)}.")
    return importlib.import_module(FORMATS[name])


def recognise(weights: Weights) -> str:
    """The name of the format of what lies there.

    Raises:
      UserError: none of them; some of its keys are shown.
    """
    for name in FORMATS:
        if get(name).recognise(weights):
            return name
    keys = ", ".join(list(weights.tensors)[:5]) or "none"
    raise UserError(
        f"{str(weights.path)!r} is of no format that clipjax knows ({', '.join(FORMATS)}, clipjax); its first keys are "
        f"{keys}. Say --from=FORMAT if it is one of them."
    )
