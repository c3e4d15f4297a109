"""Every record once an epoch, the sources mixed by weight: keyed permutations, of O(1) time and memory."""

import functools
from collections.abc import Sequence

import grain
import numpy as np

from clipjax.data.features.settings import whole
from clipjax.data.orders.records import Records, hash32, hashed


class Shuffle:
    """Random access to (source, record) by place.

    Each source is shuffled anew every epoch of its own, and the sources are mixed by weight, evenly also at the small
    scale. Within a source's epoch each record comes once.

    Args:
      lengths: records of each source.
      weights: samples of each source, by proportion.
      seed: of the run.
      windows: for each source None, a global shuffle; or (block, window): blocks of so many neighbouring records are
        shuffled, and then the records within windows of so many, so that reading goes along the files.
      start: what is called place 0.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        windows: Sequence[tuple[int, int] | None] | None = None,
        start: int = 0,
    ):
        windows = windows or [None] * len(lengths)
        self._lengths, self._seed, self._start = list(lengths), seed, start
        self._sources = [
            _shuffled(n, hash32(seed, number, 7).item(), window)
            for number, (n, window) in enumerate(zip(lengths, windows, strict=True))
        ]
        places = [
            grain.MapDataset.range(1)
            .repeat()
            .map_with_index(lambda place, _, number=number: (number, place))
            for number in range(len(lengths))
        ]
        self._mix = places[0] if len(places) == 1 else grain.MapDataset.mix(places, list(weights))

    def draw(self, place: int, number: int) -> tuple[int, int]:
        """(source, record) of a place, or the `number`-th replacement for it: any record of the same source."""
        place += self._start
        source, position = self._mix[place]
        if number:
            return source, hashed(8, self._seed, place, number) * self._lengths[source] >> 64
        return source, int(self._sources[source][position])


class _Windows:
    """Position -> record, near one another within a window; see `Order`.

    Every epoch begins at another record, so that the blocks are others, and what is left over at the end is, too.
    """

    def __init__(self, length: int, seed: int, block: int, window: int):
        self._length, self._block, self._window, self._seed = length, block, window, seed
        self._full = length // block
        self._blocks = grain.MapDataset.range(self._full).seed(seed).shuffle().repeat()

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._length)
        begin = place - place % self._window
        size = min(self._window, self._length - begin)
        place = begin + int(_permutation(size, self._seed, epoch, begin)[place - begin])
        number, rest = divmod(place, self._block)
        if number < self._full:
            place = self._blocks[epoch * self._full + number] * self._block + rest
        start = int(hash32(self._seed, 2, epoch)) * self._length >> 32
        return (place + start) % self._length


@functools.lru_cache(maxsize=32)
def _permutation(size: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(size)


def _shuffled(length: int, seed: int, window: tuple[int, int] | None):
    if window is not None and window[0] < length:
        return _Windows(length, seed, *window)
    return grain.MapDataset.range(length).seed(seed).shuffle().repeat()


def shuffle(records: Records, start: int = 0) -> Shuffle:
    """The kind `shuffle` of config.data.order: see `Shuffle`.

    `start` is the place of the run's first sample. A second run that is to go on through the data where a first one
    ended, with the same seed and sources, has that one's number of samples here; else it sees the same records again.

    Raises:
      UserError: `start` is no whole number of at least 0.
    """
    whole(start, 0, "config.data.order.start")
    return Shuffle(records.lengths, records.weights, records.seed, records.windows, start)
