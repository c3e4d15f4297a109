"""Gradients against central differences of a float64 oracle, one parameter after another."""

import jax
import numpy as np


def assert_gradients(loss, exact_loss, params, step=1e-5, tolerance=2e-4):
    """Each parameter's gradient of `loss`, along a random direction, is that of `exact_loss`.

    Args:
      loss: of the parameters, by JAX in float32.
      exact_loss: the same of a float64 tree, by numpy.
      params: float32 tree.
      step: of the differences.
      tolerance: relative to the gradient's length along the direction, and to the largest of all.

    Returns:
      the gradient.
    """
    gradient = jax.jit(jax.grad(loss))(params)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.float64, params))
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    rng = np.random.default_rng(7)
    found, wanted = [], []
    for i, slope in enumerate(jax.tree.leaves(gradient)):
        direction = rng.normal(size=leaves[i].shape)
        direction /= np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            moved = [*leaves[:i], leaves[i] + sign * step * direction, *leaves[i + 1 :]]
            losses.append(exact_loss(jax.tree.unflatten(tree, moved)))
        wanted.append((losses[0] - losses[1]) / (2 * step))
        found.append(np.sum(np.asarray(slope, np.float64) * direction))
    largest = max(np.abs(wanted))
    for path, a, b in zip(paths, found, wanted, strict=True):
        assert abs(a - b) <= tolerance * (abs(b) + 0.1 * largest), (path, a, b)
    return gradient
