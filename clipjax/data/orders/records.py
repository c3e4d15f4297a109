"""What an order is made of, and numbers that others decide."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax.errors import UserError


class Records(NamedTuple):
    """The records that an order draws from.

    Attributes:
      names: of the sources.
      sources: them themselves, `len(source)` and `source[i] -> record`; an order that keeps none of them is small when
        it is sent to data workers.
      weights: samples of each source, by proportion.
      windows: for each source None or (block, window); see `Shuffle`.
      seed: of the run.
      batch_size: samples of a global batch: batch b is the places from b * batch_size on.
    """

    names: Sequence[str]
    sources: Sequence[Any]
    weights: Sequence[float]
    windows: Sequence[tuple[int, int] | None]
    seed: int
    batch_size: int

    @property
    def lengths(self) -> list[int]:
        """Records of each source."""
        return [len(source) for source in self.sources]


def check_weight(weight: float) -> bool:
    """Whether a number can be a source's weight."""
    return (
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf
    )


def check_unmixed(records: Records, kind: str) -> None:
    """Refuses weights and windows for an order that does not draw by them.

    Raises:
      UserError: names the source.
    """
    for name, weight, window in zip(records.names, records.weights, records.windows, strict=True):
        if weight != 1 or window is not None:
            setting = "a window" if window is not None else f"the weight {weight!r}"
            raise UserError(
                f"The source {name!r} has {setting}, which config.data.order.kind = {kind!r} does not draw by; leave "
                "it out."
            )


def hash32(*numbers: int) -> np.uint32:
    """32 bits that some numbers decide, the same everywhere."""
    return np.uint32(hashed(4, *numbers))


def hashed(size: int, *numbers: int) -> int:
    """`size` bytes that some numbers decide, as a number of at least 0."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "little")
