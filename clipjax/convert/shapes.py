"""Shapes of a model's parameters."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from clipjax.models import boxed_params, example_batch, make_model


def parameter_shapes(model: Mapping[str, Any]) -> Any:
    """The parameters of a `model` section as a tree of ShapeDtypeStructs; nothing is allocated."""
    # What computes it is the matter of the machine that will.
    module = make_model({**dict(model), "attention": "einsum"})
    return nn.unbox(boxed_params(module, example_batch(model)))
