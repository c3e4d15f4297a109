"""Where an image tower's tokens lie in the image."""

import math

from flax import linen as nn

# What is said where `square_grid` finds none.
SQUARE = (
    "the tokens of a square grid of patches; it goes with square images, without model.image.patch_dropout, "
    "positions='naflex' or pool='attention'."
)


def square_grid(tower: nn.Module, tokens: int, train: bool = False) -> int | None:
    """Patches on a side of the square grid that a tower's tokens are, row by row; None where they are none.

    Their number alone does not tell: patch dropout may leave a square number of a grid's patches, a wide image may
    have as many, and queries have no place.

    Args:
      tower: the image tower.
      tokens: their number.
      train: whether patches are dropped.
    """
    dropped = train and getattr(tower, "patch_dropout", 0.0)
    other = getattr(tower, "positions", None) == "naflex"
    side = math.isqrt(tokens)
    if dropped or other or getattr(tower, "pool", None) == "attention" or side**2 != tokens:
        return None
    return side
