"""Batch normalisation: by the statistics of the whole global batch, for heads; by stored ones, for towers.

Towers that come with statistics (`stored_norm`) never take those of a batch: an image's embedding does not depend on
its neighbours, and no device has to wait for another's mean.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.platform import IN_MICRO_BATCH

UPDATES = "updates"


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


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch (Ioffe and Szegedy 2015), as it is under SyncBatchNorm of PyTorch.

    Mean and variance are taken in float32 over all axes but the last; under `jit` over a mesh a mean over the batch
    axis is one over all devices, so the result does not depend on the mesh. The running statistics are the parameters
    `mean` and `var`, which have no gradient: they need a freeze rule. While training, their new values are written to
    the mutable collection "updates", under the same paths as the parameters; the train step puts them in place after
    the optimizer. Without that collection (`model.apply({"params": params}, batch)`) nothing is written.

    A sample's output depends on all others, so with `config.grad_cache` > 1 it must not be called in a model's
    `__call__`, which sees one micro-batch, but in its `whole_batch`, which the step calls with the outputs of the whole
    batch (a projector of embeddings costs little there, and is exact):

    >>> class Projected(DualEncoder):
    ...     def setup(self):
    ...         super().setup()
    ...         self.projector = nn.Dense(256)
    ...         self.norm = BatchNorm()
    ...
    ...     def whole_batch(self, outputs, batch, *, train):
    ...         projected = self.norm(self.projector(outputs["image_embedding"]), train=train)
    ...         return outputs | {"image_projected": projected}
    >>> config.optim.freeze = ((r"norm/(mean|var)", True), (".*", False))

    Called twice in one step (two views, one after the other), each call normalises by its own rows and the running
    statistics move twice.

    Attributes:
      momentum: what the running statistics keep of their old value at each call.
      eps: added to the variance.
      affine: whether there are parameters `scale` and `bias`.
      dtype: of the result; None: that of the input.
      param_dtype: of `scale` and `bias`; the statistics are float32.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    affine: bool = True
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[..., W] -> [..., W], by the statistics of x if `train`, else by the running ones.

        Raises:
          UserError: with `train` inside a micro-batch of the gradient cache.
        """
        width, wide = x.shape[-1:], x.astype(jnp.float32)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = bias = None
        if self.affine:
            scale = self.param("scale", ones, width, jnp.dtype(self.param_dtype))
            bias = self.param("bias", zeros, width, jnp.dtype(self.param_dtype))
        mean = self._running("mean", zeros, width)
        var = self._running("var", ones, width)
        if train:
            if IN_MICRO_BATCH.get():
                raise UserError(
                    f"The batch norm {'/'.join(self.path)!r} would see one micro-batch of config.grad_cache, not the "
                    "batch; call it in the model's whole_batch, or set config.grad_cache = 1."
                )
            old, rows = (mean, var), tuple(range(x.ndim - 1))
            mean = jnp.mean(wide, axis=rows)
            var = jnp.mean(jnp.square(wide - mean), axis=rows)
            self._update("mean", old[0], mean)
            # Of the variance of all samples this is the unbiased estimate, as in PyTorch.
            count = x.size // x.shape[-1]
            self._update("var", old[1], var * (count / max(count - 1, 1)))
        y = (wide - mean) * jax.lax.rsqrt(var + self.eps)
        if self.affine:
            y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(self.dtype or x.dtype)

    def _running(self, name: str, init: Callable, width: tuple[int, ...]) -> jax.Array:
        """A running statistic, as the last call left it."""
        stored = self.param(name, init, width, jnp.float32)
        return jax.lax.stop_gradient(self.get_variable(UPDATES, name, stored))

    def _update(self, name: str, old: jax.Array, new: jax.Array) -> None:
        if self.is_mutable_collection(UPDATES) and not self.is_initializing():
            new = self.momentum * old + (1.0 - self.momentum) * jax.lax.stop_gradient(new)
            self.put_variable(UPDATES, name, new)
