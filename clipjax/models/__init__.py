"""Models, built from the `model` section of a config.

A model is a Flax module whose `__call__(batch, *, train=False)` returns a dict of outputs. The library's kinds are in
`MODELS`; an experiment names its own by import path, most simply a subclass:

>>> class Distilled(DualEncoder, kw_only=True):  # experiments/mine/model.py
...     teacher: nn.Module  # a part: a section with a kind, of any depth
...     temperature: float = 1.0  # a setting
...     needs = ("image", "text", "labels")  # batch fields it cannot do without
...
...     def __call__(self, batch, *, train=False):
...         outputs = super().__call__(batch, train=train)
...         taught = self.teacher(batch)["image_embedding"]
...         return outputs | {"teacher_image_embedding": jax.lax.stop_gradient(taught)}
>>> config.model = model_section(
...     kind="experiments.mine.model:Distilled",
...     teacher=model_section(image_section(width=768), kind="image_encoder", dtype="bfloat16"),
... )
>>> config.init = {"teacher": {"path": "runs/big", "part": ""}}  # see clipjax/convert/pretrained.py
>>> config.optim.freeze = ((r"teacher/.*", True), (".*", False))

**Parts.** A field that is given as a section with a `kind` is a part: it is built by that kind, and its parameters are
under the field's name (`teacher/image/...`). A part may be a whole model, whose towers are parts of it. The kinds of
`image`, `text` and `regions` are those of `PARTS`; any other part may be of any of the library's kinds, or an import
path. Every part may have its own `dtype` and `param_dtype` (None: those of what it is a part of) and `remat`. The
`attention` and `quantize` of the whole model go to every part below; a part that has parts may say otherwise for them.

**Rules for a module.** A setting that is a list becomes a tuple, a dict a `FrozenDict`, so that modules can be hashed;
a section for a field that is annotated as a `Mapping`, such as that of a tokenizer, is a setting and no part.
All parameters are made by `__call__` with `train=False`, or by `whole_batch`. What is random while training comes from
`batch["sample_seed"]` (uint32 [B]) alone. Each sample's outputs depend on that sample alone; what mixes samples (batch
norm) belongs in an optional `whole_batch(self, outputs, batch, *, train) -> outputs`, which the train step calls with
what `__call__` made of the whole batch, also where that was in micro-batches. New values of parameters that have no
gradient go into the mutable collection "updates", see `batch_norm.BatchNorm`.
"""

import contextlib
import copy
import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from clipjax import registry
from clipjax.errors import UserError
from clipjax.models import quantize
from clipjax.models.attention import IMPLEMENTATIONS
from clipjax.platform import target_platform

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

_FLOATS = ("float32", "bfloat16", "float16")
# What the section of a model has besides its module's fields: how it is computed, for all of its parts.
_HOW = {"dtype": "auto", "param_dtype": "float32", "attention": "auto", "quantize": None}
# Where these have another name in a module. A text tower's own `attention` says what a token may see.
_IN_MODULE = {"attention": "attention_impl"}


def part_fields(module: type[nn.Module]) -> dict[str, bool]:
    """The fields of a module class that are modules: name -> whether it must be given."""
    try:
        hints = typing.get_type_hints(module)
    except NameError:  # an annotation that is only imported for type checkers
        hints = {f.name: f.type for f in dataclasses.fields(module)}
    return {
        f.name: _is_required(f)
        for f in dataclasses.fields(module)
        if f.name not in ("parent", "name") and _is_module(hints[f.name])
    }


def _setting_fields(module: type[nn.Module]) -> set[str]:
    """The fields that are mappings: a section for one of these is a setting, also if it has a `kind`."""
    hints = {f.name: f.type for f in dataclasses.fields(module)}
    with contextlib.suppress(NameError):  # an annotation that is only imported for type checkers
        hints = typing.get_type_hints(module)
    return {
        name
        for name, hint in hints.items()
        if typing.get_origin(hint) is Mapping or hint is Mapping
    }


def _is_required(field: dataclasses.Field) -> bool:
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
    module = _module_class(kind, table, what)
    parts = part_fields(module)
    own = {f.name: _default(f) for f in dataclasses.fields(module)}
    hidden = ("parent", "name", *parts, *(_IN_MODULE.get(name, name) for name in _HOW))
    fields = {name: default for name, default in own.items() if name not in hidden}
    if table is MODELS:
        fields |= _HOW
    else:
        fields |= {name: None for name in ("dtype", "param_dtype") if name in own}
    for name, value in settings.items():
        if name in PARTS and name not in parts and value is not None:
            raise _no_place(what, kind, name)
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


def _module_class(kind: str, table: Mapping[str, str], what: str) -> type[nn.Module]:
    module = registry.lookup(kind, table, what)
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise UserError(f"The {what} {kind!r} is not a class that derives from flax.linen.Module.")
    return module


def _no_place(what: str, kind: str, part: str, where: str = "model") -> UserError:
    return UserError(
        f"The {what} {kind!r} has no {PARTS[part][1]}; leave config.{where}.{part} out."
    )


def compute_dtype(name: str, what: str = "model.dtype") -> str:
    """What "auto" means on the target platform; `what` is the setting, for the error."""
    if name == "auto":
        return "float32" if target_platform() == "cpu" else "bfloat16"
    if name not in _FLOATS:
        raise UserError(f"{what} must be auto, {', '.join(_FLOATS)}, not {name!r}.")
    return name


def matmul_precision(model: str | Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Within it, programs are traced with full-precision products if anything is computed in float32.

    By default accelerators round float32 operands (TF32 on GPU, bfloat16 on TPU). Products of bfloat16 operands are
    exact, and summed in float32, so with them nothing is set, and nothing lost if it is.

    Args:
      model: a `model` section, all of whose parts count, or a compute dtype.
    """
    dtypes = [model]
    if not isinstance(model, str):
        dtypes = [model["dtype"], *(part.get("dtype") for _, part in model_parts(model))]
    if any(compute_dtype(dtype) == "float32" for dtype in dtypes if dtype is not None):
        return jax.default_matmul_precision("float32")
    return contextlib.nullcontext()


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """The module of a `model` section, with all its parts.

    Raises:
      UserError: an unknown kind or setting, a part that is missing or no section, or one that cannot do what the
        model's settings ask for.
    """
    return _make(config, "model", MODELS, "model", _HOW)


def _make(
    config: Mapping[str, Any],
    path: str,
    table: Mapping[str, str],
    what: str,
    how: Mapping[str, Any],
) -> nn.Module:
    """The module of the section at `path` of the config, within a model that is computed as `how` says."""
    options = dict(config)
    if "kind" not in options:
        raise UserError(f"config.{path} must be a section with a 'kind'.")
    kind = options.pop("kind")
    module = _module_class(kind, table, what)
    fields = {f.name: f for f in dataclasses.fields(module)}
    parts, name = part_fields(module), path.rpartition(".")[2]
    mappings = _setting_fields(module)

    # A part without parts has no `quantize` but the model's, and its `attention`, if any, is a field of its own.
    mine = [k for k in _HOW if "dtype" in k or path == "model" or (parts and k not in fields)]
    said = {k: options.pop(k) for k in mine if k in options}
    how = dict(how) | {k: v for k, v in said.items() if v is not None or k == "quantize"}
    _check_how(how, path)
    how["dtype"] = compute_dtype(how["dtype"], f"{path}.dtype")
    if how["quantize"] is not None and name in TOWERS and "quantize" not in fields:
        raise UserError(f"The {what} {kind!r} cannot be quantised; set model.quantize to None.")
    given = {_IN_MODULE.get(k, k): v for k, v in how.items()}
    given = {k: v for k, v in given.items() if k in fields}

    for key, value in list(options.items()):
        where = f"{path}.{key}"
        if key in PARTS and key not in fields:
            raise _no_place(what, kind, key, path)
        if _is_section(value) and "kind" in value and key not in mappings:
            if key not in fields:
                raise UserError(
                    f"The {what} {kind!r} has no part {key!r}{registry.nearest(key, list(parts))}."
                )
            given[key] = _make(options.pop(key), where, *PARTS.get(key, (ANY_PART, "part")), how)
        elif key in parts and value is not None and not isinstance(value, nn.Module):
            raise UserError(f"config.{where} must be a section with a 'kind', not {value!r}.")
        elif value is None and key in fields and _is_required(fields[key]):
            options.pop(key)  # what a section has where there is no default
        else:
            options[key] = _hashable(value)
    for part, needed in parts.items():
        if needed and part not in given and part not in options:
            raise UserError(f"The {what} {kind!r} needs a section config.{path}.{part}.")
    return registry.call(module, options, f"The {what} {kind!r}", **given)


def _check_how(how: Mapping[str, Any], path: str) -> None:
    if how["attention"] not in IMPLEMENTATIONS:
        raise UserError(
            f"{path}.attention cannot be {how['attention']!r}"
            f"{registry.nearest(how['attention'], IMPLEMENTATIONS)}."
        )
    quantize.check(how["quantize"])
    if how["param_dtype"] not in _FLOATS:
        raise UserError(
            f"{path}.param_dtype must be {', '.join(_FLOATS)}, not {how['param_dtype']!r}."
        )


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping | ConfigDict)


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if _is_section(value):
        return flax.core.FrozenDict({k: _hashable(v) for k, v in value.items()})
    return value


def needs(module: nn.Module) -> tuple[str, ...]:
    """The batch fields that a model cannot train without: its attribute `needs`, () if it has none.

    >>> class Prompted(DualEncoder):
    ...     needs = ("image", "text", "labels")

    `sample_seed` is in every batch and need not be named.

    Raises:
      UserError: the attribute is not a tuple of names.
    """
    names = getattr(module, "needs", ())
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        kind = type(module)
        raise UserError(
            f"The attribute `needs` of {kind.__module__}:{kind.__qualname__} must be a tuple of names of batch fields, "
            f"not {names!r}."
        )
    return names


def example_batch(config: Mapping[str, Any], size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch that the towers of a `model` section take.

    What a run's batch has is `clipjax.batch.example_batch`; this is for a model alone, without a pipeline.
    """
    batch = {}
    if "image" in config and "size" in config["image"]:
        side = config["image"]["size"]
        batch["image"] = jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8)
    if "text" in config and "length" in config["text"]:
        batch["text"] = jax.ShapeDtypeStruct((size, config["text"]["length"]), jnp.int32)
        if "regions" in config:
            batch |= example_regions(size, 1, config["text"]["length"])
    return batch | {"sample_seed": jax.ShapeDtypeStruct((size,), jnp.uint32)}


def initialise(module: nn.Module, key: jax.Array, batch: Mapping[str, Any]) -> Any:
    """Fresh parameters of a model, of `__call__` and `whole_batch`, in boxes with the names of their axes."""
    if not hasattr(module, "whole_batch"):
        return module.init(key, batch).get("params", {})

    def everything(module: nn.Module, batch: Mapping[str, Any]) -> Any:
        return module.whole_batch(module(batch), batch, train=False)

    return module.init(key, batch, method=everything).get("params", {})


def boxed_params(module: nn.Module, batch: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
    """Shapes and dtypes of a module's parameters, in boxes with the names of their axes.

    Nothing is allocated. A module is traced once for all who ask, since a start asks several times.
    """
    shapes = tuple(sorted(batch.items()))
    try:
        hash(module)
    except TypeError:  # one of its settings is a list or an array
        return _trace(module, shapes)
    return jax.tree.map(lambda x: x, _traced(module, shapes))  # a tree of the caller's own


def _trace(module: nn.Module, batch: tuple[tuple[str, jax.ShapeDtypeStruct], ...]) -> Any:
    fresh = functools.partial(initialise, module)
    return jax.eval_shape(fresh, jax.random.key(0), dict(batch))


_traced = functools.lru_cache(maxsize=16)(_trace)


def model_parts(config: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """The sections of all parts of a `model` section, with dotted names: `image`, `teacher`, `teacher.image`, ...

    A part comes before its own parts, and `image`, `text` and `regions` before others.
    """
    names = [*(p for p in PARTS if p in config), *(name for name in config if name not in PARTS)]
    found = []
    for name in names:
        part = config[name]
        if _is_section(part) and "kind" in part:
            found += [(path + name, part), *model_parts(part, f"{path}{name}.")]
    return found


def example_regions(size: int, count: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of `count` regions a sample, with texts of `length` tokens."""
    return {
        "boxes": jax.ShapeDtypeStruct((size, count, 4), jnp.float32),
        "region_text": jax.ShapeDtypeStruct((size, count, length), jnp.int32),
        "region_mask": jax.ShapeDtypeStruct((size, count), jnp.bool_),
    }
