"""Shapes of a model's parameters."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from clipjax.batch import example_for
from clipjax.mesh import parameter_shardings
from clipjax.models import boxed_params, make_model


def parameter_shapes(model: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Any:
    """The parameters of a `model` section as a tree of ShapeDtypeStructs; nothing is allocated.

    Args:
      model: the section.
      config: of its run, for models that need more of a batch than images and texts.
    """
    # What computes it is the matter of the machine that will.
    module = make_model({**dict(model), "attention": "einsum"})
    return nn.unbox(boxed_params(module, example_for(module, config or {"model": model})))


def abstract_params(module: nn.Module, config: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model's parameters; `config` is its run's."""
    boxed = boxed_params(module, example_for(module, config))
    shardings = parameter_shardings(boxed, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
    )
