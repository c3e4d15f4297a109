"""Learning rates and momentum of the two stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

EPOCHS = (1.0, 0.5, 0.1)  # of the peak, in thirds of the second stage


def linear(*, peak: float, total: int, warmup: int, batch_size: int, final: float) -> Callable:
    """First stage: from `peak` at the first step straight to `final * peak` at the end; there is no warm-up."""
    del warmup
    return lambda step: peak * (1 - (1 - final) * jnp.minimum(step * (batch_size / total), 1.0))


def epochs(*, peak: float, total: int, warmup: int, batch_size: int, final: float) -> Callable:
    """Second stage: `EPOCHS` of `peak`; there is neither warm-up nor a final rate."""
    del warmup, final
    return lambda step: peak * _of_epoch(EPOCHS, step, total / batch_size)


def momentum(
    config: Mapping[str, Any],
    trained: Mapping[str, Any],
    *,
    steps: int,
    values: Sequence[float] = (0.5, 0.6, 0.7),
) -> optax.GradientTransformation:
    """Gradient descent with momentum, another one in each of equal parts of the run's `steps`."""
    del config, trained

    def update(gradients: Any, state: tuple[jax.Array, Any], params: Any = None) -> Any:
        del params
        now = _of_epoch(values, state[0], steps)
        trace = jax.tree.map(lambda g, t: g + now * t, gradients, state[1])
        return trace, (state[0] + 1, trace)

    zeros = lambda params: (jnp.int32(0), jax.tree.map(jnp.zeros_like, params))  # noqa: E731
    return optax.GradientTransformation(zeros, update)


def _of_epoch(values: Sequence[float], step: jax.Array, steps: float) -> jax.Array:
    epoch = (step * (len(values) / steps) + 1e-6).astype(jnp.int32)  # rounding delays no change
    return jnp.float32(values)[jnp.minimum(epoch, len(values) - 1)]
