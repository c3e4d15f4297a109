"""Batch normalisation by stored statistics, for towers that come with them.

The statistics of a batch are never taken: a picture's embedding does not depend on its neighbours, and no device has to
wait for another's mean.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn


def stored_norm(
    module: nn.Module,
    width: int,
    eps: float,
    scale_init: Callable = nn.initializers.ones,
    param_dtype: str = "float32",
) -> tuple[jax.Array, jax.Array]:
    """Declares `scale`, `bias`, `mean` and `var` [width] in `module`, and folds them into one affine map.

    `mean` and `var` get no gradient, but they are parameters: the default rules leave them as they are, and rules that
    decay every parameter would shrink them.

    Args:
      module: the convolution whose outputs are normalised, within its `nn.compact` method.
      width: its outputs.
      eps: added to the variance.
      scale_init: of `scale`; zeros let a residual branch begin as nothing.
      param_dtype: of the four parameters.

    Returns:
      (factor, offset), float32 [width]: the norm of x is x * factor + offset.
    """

    def vector(name: str, init: Callable) -> jax.Array:
        return module.param(name, init, (width,), jnp.dtype(param_dtype)).astype(jnp.float32)

    scale = vector("scale", scale_init)
    bias = vector("bias", nn.initializers.zeros)
    mean = jax.lax.stop_gradient(vector("mean", nn.initializers.zeros))
    var = jax.lax.stop_gradient(vector("var", nn.initializers.ones))
    factor = scale * jax.lax.rsqrt(var + eps)
    return factor, bias - mean * factor
