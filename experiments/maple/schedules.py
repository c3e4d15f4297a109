"""The learning rate of Dassl, in which the released code is written."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

WARMUP_RATE = 1e-5


def cosine_by_epoch(
    *, peak: float, total: int, warmup: int, batch_size: int, final: float
) -> Callable[[jax.Array], jax.Array]:
    """`WARMUP_RATE` in the first epoch, then a cosine that changes from epoch to epoch and is never 0.

    In epoch e of E, from 0: peak (1 + cos(pi (e - 1) / E)) / 2. `warmup` says how many samples an epoch has.
    """
    del final
    steps, epochs = max(round(warmup / batch_size), 1), total / warmup

    def rate(step: jax.Array) -> jax.Array:
        epoch = (step // steps).astype(jnp.float32)
        cosine = 0.5 * (1 + jnp.cos(math.pi * (epoch - 1) / epochs))
        return jnp.where(epoch == 0, WARMUP_RATE, peak * cosine)

    return rate
