"""Start a part of a model from pretrained weights: the `init` section of a config.

`config.init = {"image": "efficientnet_lite0", "text": "runs/other"}` fills the subtree of the parameters under each
key, from a tower that a Python package ships or from a checkpoint of any format that clipjax reads (`clipjax.load`
takes the same paths). The key "" is the whole model. Every parameter of the subtree must be there with its shape.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from clipjax import checkpoint, registry, rules
from clipjax.convert import hub
from clipjax.convert.source import open_source
from clipjax.errors import UserError

TOWERS = {
    "efficientnet_lite0": "clipjax.convert.efficientnet_lite:load_efficientnet_lite0",
    "minilm_l6": "clipjax.convert.minilm:load_minilm_l6",
    "multilingual_e5_small": "clipjax.convert.e5:load_multilingual_e5_small",
}


def load_pretrained(init: Mapping[str, str], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flat path -> array of everything that `init` names.

    Args:
      init: part of the model -> name of a tower in `TOWERS`, or path of a checkpoint.
      shapes: the model's parameters as ShapeDtypeStructs.

    Raises:
      UserError: no such part or tower, or weights that do not fit it (all misfits are named).
    """
    loaded: dict[str, np.ndarray] = {}
    for part, name in init.items():
        wanted = shapes
        for key in filter(None, part.split("/")):
            if not isinstance(wanted, Mapping) or key not in wanted:
                hint = registry.nearest(key, wanted) if isinstance(wanted, Mapping) else ""
                raise UserError(
                    f"config.init names a part {part!r} that the model does not have{hint}."
                )
            wanted = wanted[key]
        found = _from_package(name) if name in TOWERS else _from_checkpoint(name, part)
        checkpoint.check_shapes(found, wanted, f"{name!r} (for config.init[{part!r}])")
        prefix = f"{part}/" if part else ""
        loaded |= {prefix + path: leaf for path, leaf in rules.paths(found).items()}
    return loaded


def _from_package(name: str) -> Any:
    return registry.lookup(TOWERS[name], {}, "pretrained tower")()


def _from_checkpoint(path: str, part: str) -> Any:
    if not path.startswith(hub.PREFIX) and not epath.Path(path).exists():
        raise UserError(
            f"config.init[{part!r}] = {path!r} is neither a checkpoint nor a pretrained tower"
            f"{registry.nearest(path, TOWERS)}."
        )
    params = open_source(path).params
    prefix = f"{part}/" if part else ""
    found = {p.removeprefix(prefix): t for p, t in params.items() if p.startswith(prefix)}
    if not found:
        parts = sorted({p.split("/")[0] for p in params})
        raise UserError(
            f"The checkpoint {path!r} has no part {part!r}{registry.nearest(part, parts)}."
        )
    return rules.tree({p: tensor.read() for p, tensor in found.items()})
