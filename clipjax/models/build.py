"""From the `model` section of a config to a Flax module, part by part."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.core
import jax
from flax import linen as nn

from clipjax import registry
from clipjax.errors import UserError
from clipjax.models import quantize
from clipjax.models.attention import IMPLEMENTATIONS
from clipjax.models.sections import (
    ANY_PART,
    HOW,
    IN_MODULE,
    MODELS,
    PARTS,
    TOWERS,
    is_required,
    is_section,
    mapping_fields,
    model_parts,
    module_class,
    no_place,
    part_fields,
)
from clipjax.platform import target_platform

_FLOATS = ("float32", "bfloat16", "float16")


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
    return _make(config, "model", MODELS, "model", HOW)


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
    module = module_class(kind, table, what)
    fields = {f.name: f for f in dataclasses.fields(module)}
    parts, name = part_fields(module), path.rpartition(".")[2]
    mappings = mapping_fields(module)

    # A part without parts has no `quantize` but the model's, and its `attention`, if any, is a field of its own.
    mine = [k for k in HOW if "dtype" in k or path == "model" or (parts and k not in fields)]
    said = {k: options.pop(k) for k in mine if k in options}
    how = dict(how) | {k: v for k, v in said.items() if v is not None or k == "quantize"}
    _check_how(how, path)
    how["dtype"] = compute_dtype(how["dtype"], f"{path}.dtype")
    if how["quantize"] is not None and name in TOWERS and "quantize" not in fields:
        raise UserError(f"The {what} {kind!r} cannot be quantised; set model.quantize to None.")
    given = {IN_MODULE.get(k, k): v for k, v in how.items()}
    given = {k: v for k, v in given.items() if k in fields}

    for key, value in list(options.items()):
        where = f"{path}.{key}"
        if key in PARTS and key not in fields:
            raise no_place(what, kind, key, path)
        if is_section(value) and "kind" in value and key not in mappings:
            if key not in fields:
                raise UserError(
                    f"The {what} {kind!r} has no part {key!r}{registry.nearest(key, list(parts))}."
                )
            given[key] = _make(options.pop(key), where, *PARTS.get(key, (ANY_PART, "part")), how)
        elif key in parts and value is not None and not isinstance(value, nn.Module):
            raise UserError(f"config.{where} must be a section with a 'kind', not {value!r}.")
        elif value is None and key in fields and is_required(fields[key]):
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


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if is_section(value):
        return flax.core.FrozenDict({k: _hashable(v) for k, v in value.items()})
    return value
