"""Soft assignment of rows to columns under given sums: the Sinkhorn-Knopp iteration (Cuturi 2013, arXiv 1306.0895)."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from clipjax.errors import UserError


def sinkhorn(
    similarity: jax.Array,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    row_mass: jax.Array | None = None,
    column_mass: jax.Array | None = None,
) -> jax.Array:
    """The plan exp(similarity / epsilon), its columns and rows scaled in turn to the sums they shall have.

    Every iteration ends with the rows, so the rows' sums are exact and the columns' come nearer with each. Everything
    is in logarithms and float32, so no similarity and no epsilon is too large. No gradient flows through it.

    Cost: memory for `similarity` and one array of its size, 4 exponentials of each element an iteration. With rows
    split over a mesh under `jit`, an iteration adds up 2 C numbers over the devices.

    Args:
      similarity: [..., R, C].
      epsilon: the smaller, the nearer to one column a row; positive.
      iterations: at least 1.
      row_mass: [..., R], what each row sums to, not negative; None: 1. A row with 0 is zeros, and no column sees it.
      column_mass: [..., C] likewise, with the same total as the rows; None: R / C, the rows' total spread evenly.

    Returns:
      float32 [..., R, C].

    Raises:
      UserError: an epsilon that is not positive, or no iteration.
    """
    if epsilon <= 0 or iterations < 1:
        raise UserError(
            f"Sinkhorn needs a positive epsilon and at least 1 iteration, not {epsilon} and {iterations}."
        )
    power = jax.lax.stop_gradient(similarity).astype(jnp.float32) / epsilon
    rows, columns = power.shape[-2:]
    row_mass = jnp.ones(rows) if row_mass is None else row_mass
    total = jnp.sum(row_mass, axis=-1, keepdims=True)
    column_mass = total / columns if column_mass is None else column_mass
    log_row, log_column = (
        jnp.log(jax.lax.stop_gradient(jnp.asarray(x, jnp.float32))) for x in (row_mass, column_mass)
    )
    of_rows = jnp.where(jnp.isneginf(log_row), log_row, 0.0)
    for _ in range(iterations):
        of_columns = log_column - logsumexp(power + of_rows[..., :, None], axis=-2)
        of_rows = log_row - logsumexp(power + of_columns[..., None, :], axis=-1)
    return jnp.exp(power + of_rows[..., :, None] + of_columns[..., None, :])
