"""Lists of (regex, value) over parameter paths, first match wins.

Freezing, weight decay and learning-rate multipliers are such lists. A path is `image/transformer/blocks/...`; the
pattern must match all of it (`re.fullmatch`). The layers of a scanned stack are one array, but have a path each:
`image/transformer/blocks/3/mlp/fc_in/kernel` is layer 3, so "all but the last two blocks" is a pattern like any other.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clipjax.errors import UserError
from clipjax.registry import nearest

STACKED = "blocks"


def paths(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"image/stem/kernel": leaf, ...} in a fixed order."""
    return dict(sorted(flatten_dict(dict(params), sep="/").items()))


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `paths`."""
    return unflatten_dict(dict(flat), sep="/")


def layer_paths(path: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> list[str]:
    """The paths under which rules see a leaf: one, or one a layer for a stack."""
    parts = path.split("/")
    if STACKED not in parts:
        return [path]
    at = parts.index(STACKED) + 1
    return ["/".join([*parts[:at], str(layer), *parts[at:]]) for layer in range(leaf.shape[0])]


def match(rules: Sequence[tuple[str, Any]], params: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The value of the first rule that matches each parameter.

    Args:
      rules: (pattern, value) pairs; numbers or booleans.
      params: tree of arrays or ShapeDtypeStructs.
      what: the rules' name in the config, for error messages.

    Returns:
      path -> value, or, where the layers of a stack differ, float32 [layers, 1, ...] that broadcasts over the leaf.

    Raises:
      UserError: no pair, a bad pattern, a pattern that matches nothing at all, or a parameter that no rule covers.
    """
    compiled = []
    for rule in rules:
        if isinstance(rule, str) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(
                f"config.{what} must be a tuple of (pattern, value) pairs, but has {rule!r} in it."
            )
        pattern, value = rule
        try:
            compiled.append((re.compile(pattern), value))
        except re.error as error:
            raise UserError(
                f"config.{what} has a pattern that is not a valid regular expression, {pattern!r}: {error}."
            ) from error
    flat = paths(params)
    names = {path: layer_paths(path, leaf) for path, leaf in flat.items()}
    everything = [name for group in names.values() for name in group]
    for pattern, _ in compiled:
        if not any(pattern.fullmatch(name) for name in everything):
            raise UserError(
                f"config.{what} has a pattern that matches no parameter, {pattern.pattern!r}"
                f"{nearest(pattern.pattern, list(flat))}."
            )

    def first(name: str) -> Any:
        for pattern, value in compiled:
            if pattern.fullmatch(name):
                return value
        raise UserError(
            f"config.{what} says nothing about the parameter {name!r}; end it with ('.*', VALUE)."
        )

    result: dict[str, Any] = {}
    for path, leaf in flat.items():
        values = [first(name) for name in names[path]]
        if all(v == values[0] for v in values):
            result[path] = values[0]
        else:
            shape = (len(values),) + (1,) * (len(leaf.shape) - 1)
            result[path] = np.asarray(values, np.float32).reshape(shape)
    return result
