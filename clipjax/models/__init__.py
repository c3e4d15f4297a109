"""Models, built from the `model` section of a config."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

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
# Sections of `config.model` with a kind and settings of their own: part -> (its kinds, what it is called).
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

# Set once for the whole model in its own section, and handed to both towers.
_DTYPES = ("dtype", "param_dtype")
# The same for towers that have them: setting of the model -> (name in a tower, default). A text tower's own `attention`
# says what a token may see.
_HOW = {"attention": ("attention_impl", "auto"), "quantize": ("quantize", None)}
_FLOATS = ("float32", "bfloat16", "float16")


def section(kind: str, table: Mapping[str, str], what: str, **settings: Any) -> ConfigDict:
    """A config section for a module: `kind`, and all its settings with their defaults.

    Raises:
      UserError: no such kind, or a setting that it does not have (with the nearest one).
    """
    module = registry.lookup(kind, table, what)
    shared = () if table is MODELS else (*_DTYPES, *(name for name, _ in _HOW.values()))
    fields = {
        f.name: None if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(module)
        if f.name not in ("parent", "name", *PARTS, *shared)
    }
    if table is MODELS:
        fields |= {k: default for k, (_, default) in _HOW.items()}
    for name in settings:
        if name not in fields:
            raise UserError(
                f"The {what} {kind!r} has no setting {name!r}{registry.nearest(name, fields)}."
            )
    return ConfigDict({"kind": kind, **fields, **settings}, type_safe=False)


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
    `quantize` None or a kind of `quantize.KINDS`; all three are for both towers. See docs/precision.md.

    Raises:
      UserError: no such kind or setting, or a part that this kind of model has no place for.
    """
    result = section(kind, MODELS, "model", **({"dtype": "auto"} | settings))
    given = {"image": image, "text": text, "regions": regions}
    parts = _parts(kind)
    _check_parts(kind, [part for part, value in given.items() if value is not None], parts)
    for part in parts:
        table, what = PARTS[part]
        default = section(next(iter(table)), table, what)
        result[part] = default if given[part] is None else given[part]
    return result


def _parts(kind: str) -> list[str]:
    """Which parts a kind of model has."""
    fields = [f.name for f in dataclasses.fields(registry.lookup(kind, MODELS, "model"))]
    return [part for part in PARTS if part in fields]


def _check_parts(kind: str, given: Iterable[str], parts: Iterable[str]) -> None:
    for part in given:
        if part not in parts:
            raise UserError(
                f"The model {kind!r} has no {PARTS[part][1]}; leave config.model.{part} out."
            )


def compute_dtype(name: str) -> str:
    """What "auto" means on the target platform."""
    if name == "auto":
        return "float32" if target_platform() == "cpu" else "bfloat16"
    if name not in _FLOATS:
        raise UserError(f"model.dtype must be auto, {', '.join(_FLOATS)}, not {name!r}.")
    return name


def matmul_precision(dtype: str) -> contextlib.AbstractContextManager[None]:
    """Within it, programs are traced with full-precision products if the compute `dtype` is float32.

    By default accelerators round float32 operands (TF32 on GPU, bfloat16 on TPU). Products of bfloat16 operands are
    exact, and summed in float32, so with them nothing is set.
    """
    if compute_dtype(dtype) == "float32":
        return jax.default_matmul_precision("float32")
    return contextlib.nullcontext()


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """The module of a `model` section.

    Raises:
      UserError: an unknown kind or setting, or a tower that cannot do what the model's settings ask for.
    """
    # Checkpoints of before these settings have none.
    how = {k: config.get(k, default) for k, (_, default) in _HOW.items()}
    if how["attention"] not in IMPLEMENTATIONS:
        raise UserError(
            f"model.attention cannot be {how['attention']!r}"
            f"{registry.nearest(how['attention'], IMPLEMENTATIONS)}."
        )
    quantize.check(how["quantize"])
    kind = config["kind"]
    parts = _parts(kind)
    _check_parts(kind, [part for part in PARTS if part in config], parts)
    apart = (*PARTS, "kind", *_HOW)
    settings = {k: v for k, v in dict(config).items() if k not in apart}
    settings["dtype"] = compute_dtype(settings["dtype"])
    if settings["param_dtype"] not in _FLOATS:
        raise UserError(
            f"model.param_dtype must be {', '.join(_FLOATS)}, not {settings['param_dtype']!r}."
        )
    dtypes = {k: settings[k] for k in _DTYPES}
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}

    def make(part: str) -> nn.Module:
        if part not in config:
            raise UserError(f"The model {config['kind']!r} needs a section config.model.{part}.")
        options = dict(config[part])
        kind = options.pop("kind")
        table, what = PARTS[part]
        module = registry.lookup(kind, table, what)
        fields = {f.name for f in dataclasses.fields(module)}
        if how["quantize"] is not None and part in TOWERS and "quantize" not in fields:
            raise UserError(f"The {what} {kind!r} cannot be quantised; set model.quantize to None.")
        given = dtypes | {n: how[k] for k, (n, _) in _HOW.items() if n in fields}
        return registry.call(module, options, f"The {what} {kind!r}", **given)

    made = {part: make(part) for part in parts}
    return registry.call(
        registry.lookup(kind, MODELS, "model"), settings, f"The model {kind!r}", **made
    )


def example_batch(config: Mapping[str, Any], size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch that `make_model(config)` takes."""
    batch = {}
    if "image" in config:
        side = config["image"]["size"]
        batch["image"] = jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8)
    if "text" in config:
        batch["text"] = jax.ShapeDtypeStruct((size, config["text"]["length"]), jnp.int32)
    if "regions" in config:
        batch |= example_regions(size, 1, config["text"]["length"])
    return batch | {"sample_seed": jax.ShapeDtypeStruct((size,), jnp.uint32)}


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


def init_params(
    module: nn.Module, key: jax.Array, batch: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """Fresh parameters, in their boxes: of a call, and of `whole_batch` where the module has one.

    Args:
      module: the model.
      key: from `jax.random.key`.
      batch: as for a call with `train=False`.
    """

    def everything(module: nn.Module, batch: Mapping[str, jax.Array]) -> None:
        module.whole_batch(module(batch), batch, train=False)

    whole = callable(getattr(type(module), "whole_batch", None))
    return module.init(key, batch, **({"method": everything} if whole else {})).get("params", {})


def needs(module: nn.Module) -> tuple[str, ...]:
    """The batch fields without which a model cannot train: its `needs`, or by default those of its towers."""
    if getattr(module, "needs", None) is not None:
        return tuple(module.needs)
    regions = ("boxes", "region_text", "region_mask") if hasattr(module, "regions") else ()
    return tuple(f for f in TOWERS if hasattr(module, f)) + regions


def _trace(module: nn.Module, batch: tuple[tuple[str, jax.ShapeDtypeStruct], ...]) -> Any:
    return jax.eval_shape(functools.partial(init_params, module), jax.random.key(0), dict(batch))


_traced = functools.lru_cache(maxsize=16)(_trace)


def model_parts(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The sections of a model's parts, with their names."""
    return [(part, config[part]) for part in PARTS if part in config]


def example_regions(size: int, count: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of `count` regions a sample, with texts of `length` tokens."""
    return {
        "boxes": jax.ShapeDtypeStruct((size, count, 4), jnp.float32),
        "region_text": jax.ShapeDtypeStruct((size, count, length), jnp.int32),
        "region_mask": jax.ShapeDtypeStruct((size, count), jnp.bool_),
    }
