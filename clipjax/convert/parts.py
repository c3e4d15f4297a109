"""Parts of a model left out: what is left is a model of another kind, with the parameters that it had."""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from clipjax import registry, rules
from clipjax.convert.shapes import parameter_shapes
from clipjax.convert.source import Source
from clipjax.errors import UserError
from clipjax.models import MODELS, TOWERS, model_parts, part_fields, section


def without(source: Source, parts: Sequence[str]) -> Source:
    """A region model without its regions is a dual encoder, a dual encoder without its texts an image tower.

    A tower's projection goes with it, and the scale and bias of logits where one tower is left. The config tells of the
    run as it was, but for `model`.

    Args:
      source: of any format.
      parts: sections of `config.model`, or other names that parameters begin with (`class_centres`); none: no change.

    Raises:
      UserError: the model has no such part, or no kind of model is what is left.
    """
    if not parts:
        return source
    follow = {f"{tower}_head" for tower in TOWERS} | {"logit_scale", "logit_bias"}
    known = dict.fromkeys(_top_parts(source.config.model))
    known |= dict.fromkeys(_first(path) for path in source.params if _first(path) not in follow)
    for part in parts:
        if part not in known:
            raise UserError(f"The model has no part {part!r}{registry.nearest(part, known)}.")
    config = ConfigDict(source.config.to_dict(), type_safe=False)
    config.model = _left(source.config.model, parts)
    wanted = rules.paths(parameter_shapes(config.model, config))
    lacking = [path for path in wanted if path not in source.params]
    if lacking:
        raise UserError(
            f"What is left is no {config.model.kind!r}: it has no {', '.join(lacking)}."
        )
    gone = [path for path in source.params if path not in wanted]
    names = list(dict.fromkeys(map(_first, gone)))
    more = [name for name in names if name not in parts and name not in follow]
    if more:
        raise UserError(
            f"Without {', '.join(parts)} the model still has {', '.join(more)}, which a {config.model.kind!r} has not; "
            f"--without={','.join((*parts, *more))} leaves that out, too."
        )
    note = (
        f"Left out: {', '.join(names)} ({len(gone)} tensors); what is left is of the kind "
        f"{config.model.kind!r}."
    )
    return dataclasses.replace(
        source,
        config=config,
        params={path: source.params[path] for path in wanted},
        tokenizer=source.tokenizer if "text" in config.model else None,
        notes=(*source.notes, note),
    )


def _left(model: ConfigDict, parts: Sequence[str]) -> ConfigDict:
    """The `model` section of what is left.

    Raises:
      UserError: no kind of model has these parts.
    """
    there = _top_parts(model)
    left = [part for part in there if part not in parts]
    # A module of an experiment's own may do without a part, but not without other parameters.
    own = (model.kind,) if set(parts) <= set(there) else ()
    for kind in dict.fromkeys((*own, *MODELS)):
        fields = part_fields(registry.lookup(kind, MODELS, "model"))
        if {part for part, needed in fields.items() if needed} <= set(left) <= fields.keys():
            blank = section(kind, MODELS, "model", **{part: model[part] for part in left})
            settings = [name for name in blank if name in model and name not in ("kind", *left)]
            return ConfigDict(
                blank.to_dict() | {name: model[name] for name in settings}, type_safe=False
            )
    raise UserError(
        f"Without {', '.join(parts)} there is {', '.join(left) or 'nothing'} left, and no kind of model is that."
    )


def _top_parts(model: ConfigDict) -> list[str]:
    return [part for part, _ in model_parts(model) if "." not in part]


def _first(path: str) -> str:
    return path.split("/")[0]
