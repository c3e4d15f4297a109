"""Shapes and dtypes of a run's batch, as its features say: to compile, plan and count before there is data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.data import features
from clipjax.fields import BATCH


def example_batch(config: Mapping[str, Any], size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """What the pipeline gives a run's step, the global batch of `size` samples.

    The fields of `fields.BATCH` come first, in the order there. Those that stay on the host (`fields.HOST_ONLY`) are
    not in it.

    Args:
      config: of the run; what its features read of it.
      size: samples.

    Raises:
      UserError: features that cannot be made, see `features.Features`.
    """
    found = features.shapes(config) | {"sample_seed": jax.ShapeDtypeStruct((), jnp.uint32)}
    known = [field for field in BATCH if field in found]
    return {
        field: jax.ShapeDtypeStruct((size, *found[field].shape), found[field].dtype)
        for field in (*known, *(field for field in found if field not in BATCH))
    }
