"""The sections of a config that models are built from: kinds, parts and settings with their defaults."""

import contextlib
import copy
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import flax.core
from flax import linen as nn
from ml_collections import ConfigDict

from clipjax import registry
from clipjax.errors import UserError

IMAGE_TOWERS = {
    "vit": "clipjax.models.image:ViT",
    "resnet": "clipjax.models.resnet:ResNet",
    "efficientnet_lite0": "clipjax.models.efficientnet:EfficientNetLite0",
}
TEXT_TOWERS = {
    "transformer": "clipjax.models.text:TextTransformer",
    "bert": "clipjax.models.bert:Bert",
}
REGION_HEADS = {
    "prompter": "clipjax.models.regions.prompter:Prompter",
    "roi_align": "clipjax.models.regions.roi_align:RoiAlign",
}
TOWERS = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}
# Parts with kinds of their own: part -> (its kinds, what it is called).
PARTS = {
    "image": (IMAGE_TOWERS, "image tower"),
    "text": (TEXT_TOWERS, "text tower"),
    "regions": (REGION_HEADS, "region head"),
}
MODELS = {
    "dual_encoder": "clipjax.models.dual_encoder:DualEncoder",
    "region_dual_encoder": "clipjax.models.regions.dual_encoder:RegionDualEncoder",
    "image_encoder": "clipjax.models.single:ImageEncoder",
    "text_encoder": "clipjax.models.single:TextEncoder",
}
# What parts of other names may be.
ANY_PART = IMAGE_TOWERS | TEXT_TOWERS | REGION_HEADS | MODELS
# What the section of a model has besides its module's fields: how it is computed, for all of its parts.
HOW = {"dtype": "auto", "param_dtype": "float32", "attention": "auto", "quantize": None}
# Where these have another name in a module. A text tower's own `attention` says what a token may see.
IN_MODULE = {"attention": "attention_impl"}


def part_fields(module: type[nn.Module]) -> dict[str, bool]:
    """The fields of a module class that are modules: name -> whether it must be given."""
    try:
        hints = typing.get_type_hints(module)
    except NameError:  # an annotation that is only imported for type checkers
        hints = {f.name: f.type for f in dataclasses.fields(module)}
    return {
        f.name: is_required(f)
        for f in dataclasses.fields(module)
        if f.name not in ("parent", "name") and _is_module(hints[f.name])
    }


def mapping_fields(module: type[nn.Module]) -> set[str]:
    """The fields that are mappings: a section for one of these is a setting, also if it has a `kind`."""
    hints = {f.name: f.type for f in dataclasses.fields(module)}
    with contextlib.suppress(NameError):  # an annotation that is only imported for type checkers
        hints = typing.get_type_hints(module)
    return {
        name
        for name, hint in hints.items()
        if typing.get_origin(hint) is Mapping or hint is Mapping
    }


def is_required(field: dataclasses.Field) -> bool:
    """Whether a module's field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_module(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return "Module" in annotation
    kinds = typing.get_args(annotation) or (annotation,)
    return any(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds)


def section(kind: str, table: Mapping[str, str], what: str, **settings: Any) -> ConfigDict:
    """A config section for a module: `kind`, and all its settings with their defaults.

    A part (a field annotated as `nn.Module`) is given as a section. Of `image`, `text` and `regions` one that is needed
    and not given has its defaults; any other may be left out if the module has a default for it.

    Raises:
      UserError: no such kind, a setting that it does not have (with the nearest one), or a missing part.
    """
    module = module_class(kind, table, what)
    parts = part_fields(module)
    own = {f.name: _default(f) for f in dataclasses.fields(module)}
    hidden = ("parent", "name", *parts, *(IN_MODULE.get(name, name) for name in HOW))
    fields = {name: default for name, default in own.items() if name not in hidden}
    if table is MODELS:
        fields |= HOW
    else:
        fields |= {name: None for name in ("dtype", "param_dtype") if name in own}
    for name, value in settings.items():
        if name in PARTS and name not in parts and value is not None:
            raise no_place(what, kind, name)
        if name not in fields and name not in parts:
            known = [*fields, *parts]
            raise UserError(
                f"The {what} {kind!r} has no setting {name!r}{registry.nearest(name, known)}."
            )
    # A section that is given twice would be one, and an override of the one part change the other.
    given = {n: copy.deepcopy(v) for n, v in settings.items() if v is not None or n in fields}
    for name, needed in parts.items():
        if needed and name not in given:
            if name not in PARTS:
                raise UserError(f"The {what} {kind!r} needs a part {name!r}; give its section.")
            kinds, called = PARTS[name]
            given[name] = section(next(iter(kinds)), kinds, called)
    return ConfigDict({"kind": kind, **fields, **given}, type_safe=False)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    default = None if field.default is dataclasses.MISSING else field.default
    return default.unfreeze() if isinstance(default, flax.core.FrozenDict) else default


def image_section(kind: str = "vit", **settings: Any) -> ConfigDict:
    """Section `config.model.image`."""
    return section(kind, IMAGE_TOWERS, "image tower", **settings)


def text_section(kind: str = "transformer", **settings: Any) -> ConfigDict:
    """Section `config.model.text`."""
    return section(kind, TEXT_TOWERS, "text tower", **settings)


def region_section(kind: str = "prompter", **settings: Any) -> ConfigDict:
    """Section `config.model.regions`."""
    return section(kind, REGION_HEADS, "region head", **settings)


def model_section(
    image: ConfigDict | None = None,
    text: ConfigDict | None = None,
    kind: str = "dual_encoder",
    regions: ConfigDict | None = None,
    **settings: Any,
) -> ConfigDict:
    """Section `config.model`, with the parts that the kind of model has: given, or with their defaults.

    `dtype` "auto" is bfloat16 on accelerators and float32 on CPU; `attention` is one of `attention.IMPLEMENTATIONS`,
    `quantize` None or a kind of `quantize.KINDS`; with `param_dtype` they are for all parts. See docs/precision.md.

    Args:
      image: section of the image tower.
      text: section of the text tower.
      kind: a key of `MODELS` or an import path.
      regions: section of the region head.
      **settings: fields of the module, other parts among them, as sections.

    Raises:
      UserError: no such kind or setting, or a part that this kind of model has no place for, or needs.
    """
    given = {"image": image, "text": text, "regions": regions}
    given = {name: part for name, part in given.items() if part is not None}
    return section(kind, MODELS, "model", **given, **settings)


def module_class(kind: str, table: Mapping[str, str], what: str) -> type[nn.Module]:
    """The class that a kind names; UserError if it is no Flax module."""
    module = registry.lookup(kind, table, what)
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise UserError(f"The {what} {kind!r} is not a class that derives from flax.linen.Module.")
    return module


def no_place(what: str, kind: str, part: str, where: str = "model") -> UserError:
    """The error where a model is given a tower or a region head that it has no field for."""
    return UserError(
        f"The {what} {kind!r} has no {PARTS[part][1]}; leave config.{where}.{part} out."
    )


def model_parts(config: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """The sections of all parts of a `model` section, with dotted names: `image`, `teacher`, `teacher.image`, ...

    A part comes before its own parts, and `image`, `text` and `regions` before others.
    """
    names = [*(p for p in PARTS if p in config), *(name for name in config if name not in PARTS)]
    found = []
    for name in names:
        part = config[name]
        if is_section(part) and "kind" in part:
            found += [(path + name, part), *model_parts(part, f"{path}{name}.")]
    return found


def is_section(value: Any) -> bool:
    """Whether a value of a config is a section."""
    return isinstance(value, Mapping | ConfigDict)
