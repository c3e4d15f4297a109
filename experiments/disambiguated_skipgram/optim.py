"""Learning rates and momentum of the two stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

EPOCHS = (1.0, 0.5, 0.1)  # shares of the peak in the second stage: 0.1, 0.05, 0.01


def linear(
    *, peak: float, total: int, warmup: int, batch_size: int, final: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """From `peak` at the first step straight to `final * peak` at the end of the run; `warmup` is not used."""
    del warmup
    return lambda step: peak * (1 - (1 - final) * jnp.minimum(step * batch_size / total, 1.0))


def epochs(
    *, peak: float, total: int, warmup: int, batch_size: int, final: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """Constant in each third of the run, `EPOCHS` of `peak`; `warmup` and `final` are not used."""
    del warmup, final
    return lambda step: peak * _of_epoch(jnp.float32(EPOCHS), step * batch_size / total)


def momentum(
    config: Mapping[str, Any],
    trained: Mapping[str, Any],
    *,
    steps: int,
    values: Sequence[float] = (0.5, 0.6, 0.7),
) -> optax.GradientTransformation:
    """Gradient descent whose momentum is another one in each of equal parts of the run.

    Args:
      config, trained: not used.
      steps: of the whole run.
      values: momentum of each part.
    """
    del config, trained

    def update(gradients: Any, state: optax.TraceState, params: Any = None) -> Any:
        del params
        now = _of_epoch(jnp.float32(values), state[0] / steps)
        trace = jax.tree.map(lambda g, t: g + now * t, gradients, state[1])
        return trace, (state[0] + 1, trace)

    zeros = lambda params: (jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))  # noqa: E731
    return optax.GradientTransformation(zeros, update)


def _of_epoch(values: jax.Array, done: jax.Array) -> jax.Array:
    part = (done * len(values) + 1e-6).astype(jnp.int32)  # rounding must not delay a change
    return values[jnp.minimum(part, len(values) - 1)]
