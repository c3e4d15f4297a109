"""Groups drawn from without end, each of its records once before any comes again."""

import functools

import numpy as np

from clipjax.data.orders.records import hashed


class Cycles:
    """Draws of a fixed number of records of a group, any of them by its number.

    Args:
      members: of each group, the sample ids.
      size: records of a draw.
      seed: decides everything.
    """

    def __init__(self, members: list[np.ndarray], size: int, seed: int):
        self._members, self._size, self._seed = members, size, seed

    def record(self, group: int, draw: int, place: int, number: int) -> int:
        """A sample id.

        Args:
          group: its number.
          draw: how often the group was drawn from before. While records are left that did not come since the group was
            last shuffled, none comes again; what is left over at the end waits for another time.
          place: within the draw, below `size`; the records of one draw differ, where the group has as many.
          number: of the replacement for it, 0 for the record itself; then any record of the group.
        """
        members = self._members[group]
        if number:
            key = (self._seed, group, draw, place, number)
            return int(members[hashed(8, *key) * len(members) >> 64])
        draws = max(1, len(members) // self._size)
        epoch, rest = divmod(draw, draws)
        order = permutation(len(members), self._seed, 2, group, epoch)
        return int(members[order[(rest * self._size + place) % len(members)]])


@functools.lru_cache(maxsize=64)
def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation that numbers of at least 0 decide."""
    return np.random.default_rng(key).permutation(size)
