"""Shapes and dtypes of a run's batch, as its features say: to compile, plan and count before there is data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax import models
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


def example_for(
    module: nn.Module, config: Mapping[str, Any], size: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch for the model of a checkpoint: its towers' images and texts, or, if it needs more, what its run's was.

    Args:
      module: the model.
      config: `model`; and, if that does not say all that the model needs, what `example_batch` reads.
      size: samples.
    """
    example = models.example_batch(config["model"], size)
    return example if set(models.needs(module)) <= example.keys() else example_batch(config, size)
