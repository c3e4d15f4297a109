"""Rotary positions for patches (Su et al. 2021, RoFormer; in two dimensions as EVA-02, MLCD and Perception Encoder do).

Half of a head's pairs turn with the row, half with the column. A table holds the cosine and the sine of each pair's
angle, [2, N, d/2]; the models part in how they count rows and columns, and which entries of a head make a pair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.errors import UserError

TEMPERATURE = 10_000.0


class Rope(NamedTuple):
    """One model's way.

    Attributes:
      pairs: "adjacent", entries 2i and 2i + 1, or "half", entries i and i + d/2.
      columns_first: whether the first pairs turn with the column.
      class_first: whether a class token stands at place 0 and the patches begin at 1.
      learned_class: whether the class token turns by learned angles; else it does not turn.
    """

    pairs: str
    columns_first: bool = False
    class_first: bool = False
    learned_class: bool = False


ROPES = {
    "eva": Rope("adjacent"),  # Fang et al. 2023, EVA-02
    "mlcd": Rope("half", learned_class=True),  # An et al. 2024, MLCD
    "pe": Rope(
        "adjacent", columns_first=True, class_first=True
    ),  # Bolya et al. 2025, Perception Encoder
}


def rope_table(
    rope: Rope, side: int, size: int, *, grid: int | None = None, class_token: bool = False
) -> np.ndarray:
    """Cosines and sines for a square of patches, float32 [2, side * side, size / 2].

    Args:
      rope: which way of counting.
      side: patches along one side.
      size: width d of a head.
      grid: patches along one side when the angles were learned with: places are scaled by grid / side. None: they
        are not.
      class_token: whether there is one.

    Raises:
      UserError: the head cannot be split into pairs for rows and columns.
    """
    if size % 4:
        raise UserError(f"Rotary positions need heads of a width that 4 divides, not {size}.")
    places = np.arange(side) + float(rope.class_first and class_token)
    if grid is not None:
        places = places / side * grid
    rate = TEMPERATURE ** -(np.arange(size // 4) / (size // 4))
    angles = places[:, None] * rate
    row, column = np.repeat(angles, side, axis=0), np.tile(angles, (side, 1))
    both = np.concatenate([column, row] if rope.columns_first else [row, column], axis=1)
    return np.stack([np.cos(both), np.sin(both)]).astype(np.float32)


def with_prefix(
    table_2xBxNxP: jax.Array | np.ndarray, lead: int, class_angles_1xP: jax.Array | None = None
) -> jax.Array:
    """The table of all tokens, where `lead` others stand before the patches: [2, B, lead + N, P].

    Of these the class token, which is the first, turns by its angles, if there are any; the others do not turn.
    """
    _, batch, _, pairs = table_2xBxNxP.shape
    still = np.stack([np.ones((batch, lead, pairs)), np.zeros((batch, lead, pairs))])
    first = still.astype(np.float32)
    if class_angles_1xP is not None:
        turned = jnp.stack([jnp.cos(class_angles_1xP), jnp.sin(class_angles_1xP)])[:, None]
        turned = jnp.broadcast_to(turned, (2, batch, 1, pairs)).astype(jnp.float32)
        first = jnp.concatenate([turned, first[:, :, 1:]], axis=2)
    return jnp.concatenate([first, table_2xBxNxP], axis=2)


def with_suffix(table_2xBxNxP: jax.Array, behind: int) -> jax.Array:
    """The table of all tokens, where `behind` others that do not turn stand after them: [2, B, N + behind, P]."""
    if not behind:
        return table_2xBxNxP
    still = jnp.array([1.0, 0.0], table_2xBxNxP.dtype)[:, None, None, None]
    shape = (*table_2xBxNxP.shape[:2], behind, table_2xBxNxP.shape[3])
    return jnp.concatenate([table_2xBxNxP, jnp.broadcast_to(still, shape)], axis=2)


def rotate(x_BxNxHxd: jax.Array, table_2xBxNxP: jax.Array, pairs: str) -> jax.Array:
    """Turns each pair of each head's entries, in float32; the result has the dtype of x.

    Args:
      x_BxNxHxd: queries or keys.
      table_2xBxNxP: cosines and sines of P = d/2 pairs, the batch axis of size 1 or B.
      pairs: "adjacent" or "half", see `Rope`.
    """
    cos, sin = table_2xBxNxP[:, :, :, None]
    x = x_BxNxHxd.astype(jnp.float32)
    half = x.shape[-1] // 2
    if pairs == "adjacent":
        x = x.reshape(*x.shape[:-1], half, 2)
        first, second = x[..., 0], x[..., 1]
    else:
        first, second = x[..., :half], x[..., half:]
    turned = first * cos - second * sin, second * cos + first * sin
    y = jnp.stack(turned, axis=-1) if pairs == "adjacent" else jnp.concatenate(turned, axis=-1)
    return y.reshape(x_BxNxHxd.shape).astype(x_BxNxHxd.dtype)
