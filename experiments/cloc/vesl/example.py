"""What captioners and detectors get to see of a record."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from clipjax.data.bad import BadRecord


class Example(NamedTuple):
    """One record on its way.

    Attributes:
      record: all its fields.
      image: its image, decoded, upright, RGB.
      phrases: what the detector is asked for; empty when the captioner sees it.
    """

    record: Mapping[str, Any]
    image: Image.Image
    phrases: Sequence[str] = ()


def image_of(record: Mapping[str, Any]) -> Any:
    """A record's image as it is stored, also out of a list of one; BadRecord for several."""
    image = record.get("image")
    if not isinstance(image, list | tuple):
        return image
    if len(image) != 1:
        raise BadRecord("record has several images" if image else "there is no image")
    return image[0]
