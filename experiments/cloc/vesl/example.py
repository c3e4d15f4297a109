"""What captioners and detectors get to see of a record."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image


class Example(NamedTuple):
    """One record on its way.

    Attributes:
      record: all its fields.
      image: its picture, decoded, upright, RGB.
      phrases: what the detector is asked for; empty when the captioner sees it.
    """

    record: Mapping[str, Any]
    image: Image.Image
    phrases: Sequence[str] = ()
