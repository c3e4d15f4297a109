"""Shapes of a model's parameters."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from clipjax import batch
from clipjax.models import boxed_params, example_batch, make_model, needs


def parameter_shapes(model: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Any:
    """The parameters of a `model` section as a tree of ShapeDtypeStructs; nothing is allocated.

    Args:
      model: the section.
      config: of the run: its features say what a batch of a model is that needs more than images and texts.
    """
    # What computes it is the matter of the machine that will.
    module = make_model({**dict(model), "attention": "einsum"})
    example = example_batch(model)
    if config is not None and not set(needs(module)) <= example.keys():
        example = batch.example_batch(config)
    return nn.unbox(boxed_params(module, example))
