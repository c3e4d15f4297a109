"""Classes drawn for a sampled softmax, log-uniformly over ids in the order of frequency (TensorFlow's default)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def chances(classes: int) -> np.ndarray:
    """p_i = log((i + 2) / (i + 1)) / log(classes + 1), float64 [classes]."""
    return np.diff(np.log(np.arange(1, classes + 2))) / math.log(classes + 1)


@functools.cache
def log_expected(classes: int, count: int) -> np.ndarray:
    """Log of the chance that a class is among `count` candidates, float32 [classes].

    As in TensorFlow that is 1 - (1 - p_i)^n for n draws; n is the number that gives `count` different classes on
    average, not the number that it happened to take. All classes at once have chance 1.
    """
    if count >= classes:
        return np.zeros(classes, np.float32)
    found = lambda n: -np.expm1(n * np.log1p(-chances(classes)))  # noqa: E731
    low, high = 0.0, 1.0
    while found(high).sum() < count:
        high *= 2
    for _ in range(100):
        n = (low + high) / 2
        low, high = (n, high) if found(n).sum() < count else (low, n)
    return np.log(found(low)).astype(np.float32)


def draw_candidates(key: jax.Array, classes: int, count: int) -> jax.Array:
    """`count` different classes, int32; all of them if there are no more.

    The largest of log p + Gumbel noise: what drawing until there are `count` different ones gives.
    """
    if count >= classes:
        return jnp.arange(classes)
    log_p = jnp.log(jnp.float32(chances(classes)))
    return jax.lax.top_k(log_p + jax.random.gumbel(key, (classes,)), count)[1]
