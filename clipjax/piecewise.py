"""Numbers of a config that may change while a run goes on: loss weights, multipliers, decays.

Such a number is a plain one, or pairs ((samples, value), ...) in rising order: before the first it is the first value,
between two it is interpolated, after the last it is the last. Pairs one sample apart make a jump.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.errors import UserError

Piecewise = float | np.ndarray


def read(value: Any, what: str) -> Piecewise:
    """A number, or float32 [2, n]: samples (rising) and values.

    Args:
      value: from a config.
      what: it is, for the message, such as "The weight of the loss 'x'".

    Raises:
      UserError: neither a number nor such pairs.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        points = np.asarray(value, np.float32).T if is_pairs(value) else None
    except (TypeError, ValueError):
        points = None
    if points is None or points.ndim != 2 or len(points) != 2 or (np.diff(points[0]) <= 0).any():
        raise UserError(
            f"{what} must be a number, or pairs ((samples, value), ...) in rising order, not {value!r}."
        )
    return points


def is_pairs(value: Any) -> bool:
    """Whether a value of a config is meant as pairs."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def at(value: Piecewise, samples: jax.Array) -> float | jax.Array:
    """The value after so many samples: a plain number as it is, pairs as a float32 scalar."""
    return jnp.interp(samples, *value) if isinstance(value, np.ndarray) else value
