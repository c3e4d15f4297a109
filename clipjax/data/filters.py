"""Which records of a source are wanted at all. Others take the place of those that are not, which are counted.

A filter decides by what a record says and by the size of its image, which costs no decoding. It reads every record
it turns down: where most are, write those that pass once, with `clipjax data convert --filter`.
"""

from collections.abc import Mapping
from typing import Any

from clipjax.data.bad import BadRecord
from clipjax.data.images import open_image
from clipjax.errors import UserError
from clipjax.registry import call


class Filter:
    """`filter(record) -> bool`. All conditions must hold; a record without a field that is asked for does not pass.

    Args:
      ranges: field -> (lowest, highest), either of which may be None; such as {"similarity": (0.28, None)}.
      values: field -> the values that pass; such as {"language": ("en", "de")}.
      min_side: pixels of the image's shorter side.
      max_aspect: longer side / shorter side.
      min_words: of the longest caption, split at white space.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
        values: Mapping[str, Any] | None = None,
        min_side: int = 0,
        max_aspect: float = 0.0,
        min_words: int = 0,
    ):
        self._ranges = {k: tuple(v) for k, v in dict(ranges or {}).items()}
        for field, pair in self._ranges.items():
            numbers = [p for p in pair if p is not None]
            if (
                len(pair) != 2
                or not all(isinstance(n, int | float) for n in numbers)
                or not numbers
            ):
                raise UserError(
                    f"A filter's range of {field!r} must be (lowest, highest), of which one may be None, not {pair!r}."
                )
        self._values = {
            k: {v} if isinstance(v, str | int | float) else set(v)
            for k, v in dict(values or {}).items()
        }
        self._min_side, self._max_aspect, self._min_words = min_side, max_aspect, min_words

    def __call__(self, record: Mapping[str, Any]) -> bool:
        """Whether a record passes.

        Raises:
          BadRecord: its image's size is asked for and cannot be told.
        """
        for field, (low, high) in self._ranges.items():
            number = _number(record.get(field))
            if number is None or not (low is None or number >= low):
                return False
            if not (high is None or number <= high):
                return False
        for field, values in self._values.items():
            value = record.get(field)
            if not isinstance(value, str | int | float) or value not in values:
                return False
        if self._min_words:
            longest = max((len(t.split()) for t in record.get("text", ())), default=0)
            if longest < self._min_words:
                return False
        if self._min_side or self._max_aspect:
            images = record.get("image")
            several = isinstance(images, list | tuple)
            if several and not images:
                raise BadRecord("there is no image")
            # Only the header; which side is up does not matter.
            short, long = sorted(open_image(images[0] if several else images).size)
            if short < self._min_side or (self._max_aspect and long > self._max_aspect * short):
                return False
        return True


def make_filter(config: Mapping[str, Any] | None, name: str) -> Filter | None:
    """The filter of a source's entry; None without one.

    Raises:
      UserError: a condition that there is not, or that means nothing.
    """
    if not config:
        return None
    return call(Filter, dict(config), f"The filter of source {name!r}")


def _number(value: Any) -> float | None:
    """A number, also one written as text (img2dataset's json); None for anything else, NaN included."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if number != number else number
