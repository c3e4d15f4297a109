"""GELU in its three forms and SiLU, with derivatives written out.

Autodiff would keep several intermediate arrays of the widest layer and read them again; these keep only the input,
which makes a training step on a CPU about a tenth faster (docs/speed.md) and saves memory everywhere.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
TANH_CUBIC = 0.044715


def _with_derivative(
    function: Callable[[jax.Array], jax.Array], derivative: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """An elementwise function whose backward pass keeps only its input."""
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda x: (function(x), x), lambda x, dy: (dy * derivative(x),))
    return wrapped


def _quick(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _quick_derivative(x: jax.Array) -> jax.Array:
    s = jax.nn.sigmoid(1.702 * x)
    return s * (1 + 1.702 * x * (1 - s))


def _silu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(x)


def _silu_derivative(x: jax.Array) -> jax.Array:
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


def _exact(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _exact_derivative(x: jax.Array) -> jax.Array:
    cumulative = 0.5 * (1 + jax.lax.erf(x / math.sqrt(2)))
    return cumulative + x * jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2 * math.pi)


def _tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _tanh_derivative(x: jax.Array) -> jax.Array:
    t = jnp.tanh(SQRT_2_OVER_PI * (x + TANH_CUBIC * x**3))
    inner = SQRT_2_OVER_PI * (1 + 3 * TANH_CUBIC * jnp.square(x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - jnp.square(t)) * inner


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _with_derivative(_exact, _exact_derivative),
    "gelu_tanh": _with_derivative(_tanh, _tanh_derivative),
    "quick_gelu": _with_derivative(_quick, _quick_derivative),  # OpenAI's CLIP
    "silu": _with_derivative(_silu, _silu_derivative),  # the gate of SwiGLU
}
