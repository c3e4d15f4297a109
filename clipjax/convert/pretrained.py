"""Start a model from pretrained weights: the `init` section of a config.

`config.init = {"image": "efficientnet_lite0", "text": "runs/other"}` fills the parameters under each key, from a tower
that a Python package ships or from a checkpoint of any format that clipjax reads (`clipjax.load` takes the same paths).
The key "" is the whole model. Of several keys the longest that fits a parameter says where it comes from, and "fresh"
means that it is initialised: `{"": "ViT-B-32.pt", "regions": "fresh"}` fine-tunes a CLIP with a new region part.
Nothing else is: every parameter under a key must be there, and nothing may be left over. Images may have another size
than the checkpoint's: their positions are resampled as `clipjax convert --size` does it.

A path alone means the part of the same name. `{"path": PATH, "part": NAME}` takes another part of the checkpoint, ""
for all of it, and `{"copy": NAME}` what this model has in another of its own parts once everything else is filled:

>>> config.init = {
...     "": "runs/clip",  # what no longer key fits
...     "teacher": {"path": "runs/clip", "part": ""},  # a whole model as a part
...     "text_no": {"path": "runs/clip", "part": "text"},  # a second text tower
...     "momentum": {"copy": ""},  # momentum/image/... is image/..., fresh or filled
...     "momentum/predictor": "fresh",
... }

A copy needs everything under its key in the part that it is of, which may have more. Names of parts are paths of
parameters, with "/".
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from clipjax import registry, rules
from clipjax.convert import hub
from clipjax.convert.express import compare
from clipjax.convert.files import Tensor
from clipjax.convert.source import Source, open_source, resampled
from clipjax.errors import UserError
from clipjax.job.distributed import is_primary, notify
from clipjax.models import PARTS, model_parts

TOWERS = {
    "efficientnet_lite0": "clipjax.convert.efficientnet_lite:load_efficientnet_lite0",
    "minilm_l6": "clipjax.convert.minilm:load_minilm_l6",
    "multilingual_e5_small": "clipjax.convert.e5:load_multilingual_e5_small",
}
FRESH = "fresh"

_POSITIONS = "text/position_embedding"


class Origin(NamedTuple):
    """An entry of `config.init`: where the parameters of a part come from.

    Attributes:
      path: of a checkpoint, or a name in `TOWERS`; None: they are fresh or copied.
      part: of the checkpoint, or of this model for a copy; None: that of the same name, or the whole of a tower.
      copy: whether they are copied.
    """

    path: str | None = None
    part: str | None = None
    copy: bool = False


def load_pretrained(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flat path -> array of everything that `config.init` names but copies; prints in what it is not as it was.

    Args:
      config: of the run. `init`: part of the model -> "fresh", name of a tower in `TOWERS`, path of a checkpoint, or
        one of the sections above. `model` is compared with what a checkpoint says of itself.
      shapes: the model's parameters as ShapeDtypeStructs.

    Raises:
      UserError: no such part or tower, or weights that do not fit it (all misfits are named).
    """
    init, wanted = _origins(config["init"], shapes), rules.paths(shapes)
    _copied(init, wanted)
    loaded: dict[str, np.ndarray] = {}
    for part, origin in init.items():
        if origin.path is None:
            continue
        mine = _owned(wanted, part, init)
        notes: list[str] = []
        if origin.path in TOWERS:
            tower = rules.paths(registry.lookup(TOWERS[origin.path], {}, "pretrained tower")())
            names = _renamed(tower, origin.part or "", part)
            _check_part(origin, part, names, tower)
            found = {path: tower[name] for path, name in names.items()}
            found = _owned(found, part, init)
        else:
            source = _open(origin.path, part)
            names = _renamed(source.params, part if origin.part is None else origin.part, part)
            _check_part(origin, part, names, source.params)
            names = _owned(names, part, init)
            found = {path: source.params[name] for path, name in names.items()}
            notes = _resample(source, found, names, mine)
            notes += _changes(source, config["model"], part, origin, init)
        _check_fits(f"{origin.path!r} (for config.init[{part!r}])", found, mine)
        for note in notes if is_primary() else ():
            notify(f"config.init[{part!r}] = {origin.path!r}: {note}")
        loaded |= {p: x.read() if isinstance(x, Tensor) else x for p, x in found.items()}
    return loaded


def copies(init: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, str]:
    """What `config.init` wants copied: path of a parameter -> path of the one that it begins as.

    Args:
      init: the section.
      shapes: the model's parameters, arrays or ShapeDtypeStructs.

    Raises:
      UserError: a part that the model does not have, or that does not fit what it is to be a copy of.
    """
    return _copied(_origins(init, shapes), rules.paths(shapes))


def _copied(init: Mapping[str, Origin], wanted: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part, origin in init.items():
        if not origin.copy:
            continue
        names = _renamed(wanted, origin.part, part)
        for path, leaf in _owned(wanted, part, init).items():
            name = names.get(path)
            what = f"config.init[{part!r}] = {{'copy': {origin.part!r}}} cannot fill {path}"
            if name is None:
                original = path.removeprefix(part).lstrip("/")
                original = f"{origin.part}/{original}".strip("/")
                raise UserError(
                    f"{what}, since there is no {original}; say where it comes from, as in "
                    f"config.init[{path!r}] = 'fresh'."
                )
            owner = _owner(name, init)
            if owner is not None and init[owner].copy:
                raise UserError(f"{what}, since {name} is itself a copy; copy what that is of.")
            if wanted[name].shape != leaf.shape:
                raise UserError(
                    f"{what} of shape {list(leaf.shape)} from {name} of shape {list(wanted[name].shape)}."
                )
            found[path] = name
    return found


def _origins(init: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Origin]:
    """The entries of `config.init`, checked."""
    return {part: _origin(part, init[part], shapes) for part in init}


def _origin(part: str, value: Any, shapes: Mapping[str, Any]) -> Origin:
    _check_exists(f"config.init names a part {part!r}", part, shapes)
    if isinstance(value, str):
        return Origin() if value == FRESH else Origin(value)
    fields = dict(value) if isinstance(value, Mapping | ConfigDict) else {}
    if not all(isinstance(v, str) for v in fields.values()) or set(fields) not in (
        {"path"},
        {"path", "part"},
        {"copy"},
    ):
        raise UserError(
            f"config.init[{part!r}] must be a string, {{'path': ..., 'part': ...}} or {{'copy': ...}}, not "
            f"{fields or value!r}."
        )
    if "copy" in fields:
        _check_exists(
            f"config.init[{part!r}] copies a part {fields['copy']!r}", fields["copy"], shapes
        )
        return Origin(part=fields["copy"], copy=True)
    return Origin(fields["path"], fields.get("part"))


def _check_exists(what: str, part: str, shapes: Mapping[str, Any]) -> None:
    wanted: Any = shapes
    for key in filter(None, part.split("/")):
        if not isinstance(wanted, Mapping) or key not in wanted:
            hint = registry.nearest(key, wanted) if isinstance(wanted, Mapping) else ""
            raise UserError(f"{what} that the model does not have{hint}.")
        wanted = wanted[key]


def _renamed(flat: Iterable[str], theirs: str, ours: str) -> dict[str, str]:
    """What stands under `theirs`, by the path that it has under `ours`: our path -> their path."""
    found = {}
    for path in flat:
        if _under(path, theirs):
            rest = path.removeprefix(theirs).lstrip("/") if theirs else path
            found["/".join(filter(None, (ours, rest)))] = path
    return found


def _check_part(origin: Origin, part: str, names: Collection[str], flat: Iterable[str]) -> None:
    if not names:
        wanted = part if origin.part is None else origin.part
        parts = sorted({path.split("/")[0] for path in flat})
        raise UserError(
            f"The checkpoint {origin.path!r} has no part {wanted!r}{registry.nearest(wanted, parts)}."
        )


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
    return open_source(name)


def _resample(
    source: Source, found: dict[str, Any], names: Mapping[str, str], wanted: Mapping[str, Any]
) -> list[str]:
    """Puts resampled positions of images into `found` where the model's are of another size, and says so."""
    notes = []
    for path, tensor in found.items():
        of_image = names[path].startswith("image/")
        if of_image and path in wanted and tensor.shape != wanted[path].shape:
            new = resampled(source, names[path], tuple(wanted[path].shape))
            if new is not None:
                found[path] = new
                notes.append(
                    f"{path} is resampled from {tensor.shape[0]} to {new.shape[0]} rows ({source.resample})."
                )
    return notes


def _changes(
    source: Source, model: Mapping[str, Any], part: str, origin: Origin, init: Collection[str]
) -> list[str]:
    """In what else than their size the parts that are filled were others in their checkpoint."""
    theirs = {"": source.config.model, **dict(model_parts(source.config.model))}
    changed = []
    for name, mine in model_parts(model):
        path = name.replace(".", "/")
        if _owner(path, init) != part and not (part and _under(part, path)):
            continue
        other = theirs.get(_their_name(path, part, origin).replace("/", "."))
        for field, here, there in compare({"part": mine}, {"part": other}) if other else ():
            field = field.removeprefix("part.")
            if "." not in field and field not in ("size", "length"):  # parts of it come themselves
                changed.append(f"model.{name}.{field} is {here!r} here and was {there!r}")
    if not changed:
        return []
    return [f"its weights are used in another model than their own: {', '.join(changed)}."]


def _their_name(path: str, part: str, origin: Origin) -> str:
    """What our part at `path`, of which the entry for `part` fills something, is in the checkpoint."""
    if origin.part is None:
        return path
    if _under(path, part):
        return "/".join(filter(None, (origin.part, path.removeprefix(part).strip("/"))))
    rest = part.removeprefix(path)  # the entry is for something within it
    return origin.part.removesuffix(rest) if origin.part.endswith(rest) else "-"


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
