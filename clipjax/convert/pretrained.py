"""Start a model from pretrained weights: the `init` section of a config.

`config.init = {"image": "efficientnet_lite0", "text": "runs/other"}` fills the parameters under each key, from a tower
that a Python package ships or from a checkpoint of any format that clipjax reads (`clipjax.load` takes the same paths).
The key "" is the whole model. Of several keys the longest that fits a parameter says where it comes from, and "fresh"
means that it is initialised: `{"": "ViT-B-32.pt", "regions": "fresh"}` fine-tunes a CLIP with a new region part.
Nothing else is: every parameter under a key must be there, and nothing may be left over. Pictures may have another size
than the checkpoint's: their positions are resampled as `clipjax convert --size` does it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from clipjax import registry, rules
from clipjax.convert import hub
from clipjax.convert.express import compare
from clipjax.convert.files import Tensor
from clipjax.convert.source import Source, open_source, resampled
from clipjax.errors import UserError
from clipjax.job.distributed import first, tell
from clipjax.models import PARTS

TOWERS = {
    "efficientnet_lite0": "clipjax.convert.efficientnet_lite:load_efficientnet_lite0",
    "minilm_l6": "clipjax.convert.minilm:load_minilm_l6",
    "multilingual_e5_small": "clipjax.convert.e5:load_multilingual_e5_small",
}
FRESH = "fresh"

_POSITIONS = "text/position_embedding"


def load_pretrained(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flat path -> array of everything that `config.init` names; prints in what it is not as it was.

    Args:
      config: of the run. `init`: part of the model -> "fresh", name of a tower in `TOWERS`, or path of a checkpoint.
        `model` is compared with what a checkpoint says of itself.
      shapes: the model's parameters as ShapeDtypeStructs.

    Raises:
      UserError: no such part or tower, or weights that do not fit it (all misfits are named).
    """
    init, wanted = dict(config["init"]), rules.paths(shapes)
    loaded: dict[str, np.ndarray] = {}
    for part, name in init.items():
        _check_entry(part, name, shapes)
    for part, name in init.items():
        if name == FRESH:
            continue
        mine = _owned(wanted, part, init)
        notes: list[str] = []
        if name in TOWERS:
            tower = rules.paths(registry.lookup(TOWERS[name], {}, "pretrained tower")())
            prefix = f"{part}/" if part else ""
            found = _owned({prefix + path: array for path, array in tower.items()}, part, init)
        else:
            source = _open(name, part)
            found = _owned(source.params, part, init)
            notes = _resample(source, found, mine) + _changes(source, config["model"], part, init)
        _check_fits(f"{name!r} (for config.init[{part!r}])", found, mine)
        for note in notes if first() else ():
            tell(f"config.init[{part!r}] = {name!r}: {note}")
        loaded |= {p: x.read() if isinstance(x, Tensor) else x for p, x in found.items()}
    return loaded


def _check_entry(part: str, name: Any, shapes: Mapping[str, Any]) -> None:
    if not isinstance(name, str):
        raise UserError(f"config.init[{part!r}] must be a string, not {name!r}.")
    wanted: Any = shapes
    for key in filter(None, part.split("/")):
        if not isinstance(wanted, Mapping) or key not in wanted:
            hint = registry.nearest(key, wanted) if isinstance(wanted, Mapping) else ""
            raise UserError(
                f"config.init names a part {part!r} that the model does not have{hint}."
            )
        wanted = wanted[key]


def _under(path: str, part: str) -> bool:
    return not part or path == part or path.startswith(f"{part}/")


def _owner(path: str, init: Collection[str]) -> str | None:
    """The part whose entry says where a parameter comes from."""
    return max((part for part in init if _under(path, part)), key=len, default=None)


def _owned(flat: Mapping[str, Any], part: str, init: Collection[str]) -> dict[str, Any]:
    """What of `flat` the entry for `part` is to fill."""
    return {path: leaf for path, leaf in flat.items() if _owner(path, init) == part}


def _open(name: str, part: str) -> Source:
    if not name.startswith(hub.PREFIX) and not epath.Path(name).exists():
        raise UserError(
            f"config.init[{part!r}] = {name!r} is neither a checkpoint nor a pretrained tower"
            f"{registry.nearest(name, (*TOWERS, FRESH))}."
        )
    source = open_source(name)
    if not any(_under(path, part) for path in source.params):
        parts = sorted({path.split("/")[0] for path in source.params})
        raise UserError(
            f"The checkpoint {name!r} has no part {part!r}{registry.nearest(part, parts)}."
        )
    return source


def _resample(source: Source, found: dict[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Puts resampled positions of pictures into `found` where the model's are of another size, and says so."""
    notes = []
    for path, tensor in found.items():
        if path.startswith("image/") and path in wanted and tensor.shape != wanted[path].shape:
            new = resampled(source, path, tuple(wanted[path].shape))
            if new is not None:
                found[path] = new
                notes.append(
                    f"{path} is resampled from {tensor.shape[0]} to {new.shape[0]} rows ({source.resample})."
                )
    return notes


def _changes(
    source: Source, model: Mapping[str, Any], part: str, init: Collection[str]
) -> list[str]:
    """In what else than their size the towers that are filled were others in their checkpoint."""
    ours = [p for p in PARTS if _owner(p, init) == part or _under(part, p)]
    changed = [
        f"model.{name} is {mine!r} here and was {theirs!r}"
        for name, mine, theirs in compare(model, source.config.model)
        if name.split(".")[0] in ours and not name.endswith((".size", ".length"))
    ]
    if not changed:
        return []
    return [f"its weights are used in another model than their own: {', '.join(changed)}."]


def _check_fits(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    missing, left = _roots(wanted, found), _roots(found, wanted)
    problems = [f"{path} is missing" for path in missing]
    problems += [f"{path} is left over" for path in left]
    problems += [
        f"{path} has shape {list(found[path].shape)}, the model wants {list(leaf.shape)}"
        for path, leaf in wanted.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    ways = []
    if missing:
        ways.append(f"what is to start anew is said, as in config.init[{missing[0]!r}] = 'fresh'")
    if any(path in PARTS for path in left):
        parts = ",".join(path for path in left if path in PARTS)
        ways.append(f"clipjax convert --without={parts} makes a checkpoint without that part")
    if _POSITIONS in found and _POSITIONS in wanted:
        old, new = found[_POSITIONS].shape[0], wanted[_POSITIONS].shape[0]
        if old != new:
            ways.append(f"clipjax convert --length={new} makes one for texts of {new} tokens")
    if problems:
        sentence = f"The checkpoint {what} does not fit the model: {', '.join(problems)}"
        raise UserError(f"{'; '.join((sentence, *ways))}.")


def _roots(paths: Iterable[str], others: Collection[str]) -> list[str]:
    """What of `paths` is not in `others`: whole subtrees by their root."""
    roots: dict[str, None] = {}
    for path in paths:
        if path in others:
            continue
        parts = path.split("/")
        heads = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        roots[next(h for h in heads if not any(_under(other, h) for other in others))] = None
    return list(roots)
