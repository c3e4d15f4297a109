"""Shapes of a model's parameters."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from clipjax.models import example_batch, make_model


def parameter_shapes(model: Mapping[str, Any]) -> Any:
    """The parameters of a `model` section as a tree of ShapeDtypeStructs; nothing is allocated."""
    # What computes it is the matter of the machine that will.
    module = make_model({**dict(model), "attention": "einsum"})
    variables = jax.eval_shape(module.init, jax.random.key(0), example_batch(model))
    return nn.unbox(variables["params"])
