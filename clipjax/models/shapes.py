"""What a module takes and holds: batch fields, and parameters, fresh or as shapes alone."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError


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


def example_regions(size: int, count: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of `count` regions a sample, with texts of `length` tokens."""
    return {
        "boxes": jax.ShapeDtypeStruct((size, count, 4), jnp.float32),
        "region_text": jax.ShapeDtypeStruct((size, count, length), jnp.int32),
        "region_mask": jax.ShapeDtypeStruct((size, count), jnp.bool_),
    }
