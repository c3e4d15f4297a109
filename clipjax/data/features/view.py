"""What the features of one sample share: the record's place, its image, the frames that were cut, the texts drawn."""

import functools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.encoded_image import EncodedImage
from clipjax.data.geometry import Geometry
from clipjax.errors import UserError

SOURCE_BITS = 40  # a sample_id is (number of the source << 40) + index of the record


class Frame(NamedTuple):
    """One view of the image.

    Attributes:
      geometry: where the points of the upright image went, as fractions.
      size: side of the view in pixels.
    """

    geometry: Geometry
    size: int


class View:
    """One for a sample; features read it, and leave in it what later ones may need.

    The features named `text`, `image` and `regions` run first, in this order, so a feature of one's own sees what they
    drew. One that reads what another leaves here names that in its attribute `after`, as `regions` names `image`.

    Args:
      record: the raw record, as clipjax/data/stream.py defines it.
      source: number of its source among the config's.
      source_name: the name of that source.
      entry: its entry in `config.data.sources`, with `captions` and `box_format`.
      sample_id: (source << 40) + index of the record.
      key: (seed of the run, place in the stream, number of the draw), from which all randomness comes.

    Attributes:
      rng: the generator of `key` itself, which text, image and regions share; other features are given their own.
      captions: feature -> the texts that it drew, list of str.
      frames: image feature -> its views, list of `Frame`.
      cut: texts that were longer than a row of ids so far; a feature that cuts texts adds to it.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        source: int,
        source_name: str,
        entry: Mapping[str, Any],
        sample_id: int,
        key: tuple[int, ...],
    ):
        self.record, self.source, self.source_name = record, source, source_name
        self.entry, self.sample_id, self.key = entry, sample_id, key
        self.rng = np.random.default_rng(key)
        self.captions: dict[str, list[str]] = {}
        self.frames: dict[str, list[Frame]] = {}
        self.cut = 0

    def generator(self, name: str, number: int = 0) -> np.random.Generator:
        """A generator of one's own: of the sample, of a feature's name, and of the number of a view."""
        return np.random.default_rng((*self.key, zlib.crc32(name.encode()), number))

    @property
    def index(self) -> int:
        """The record's in its source."""
        return self.sample_id & (1 << SOURCE_BITS) - 1

    @functools.cached_property
    def image_number(self) -> int | None:
        """Which of the record's images this sample has; None if the record's `image` is no list.

        Raises:
          BadRecord: an empty list.
        """
        images = self.record.get("image")
        if not isinstance(images, list | tuple):
            return None
        if not images:
            raise BadRecord("there is no image")
        return int(self.rng.integers(len(images)))

    @functools.cached_property
    def image(self) -> EncodedImage:
        """The image, undecoded; its `size` is (width, height), upright.

        Raises:
          BadRecord: there is none, or it cannot be used.
        """
        image, number = self.record.get("image"), self.image_number
        return EncodedImage(image if number is None else image[number])

    def frame(self, feature: str = "image", number: int = 0) -> Frame:
        """A view of an image feature that has run.

        Raises:
          UserError: there is no such feature, or it runs later.
        """
        if feature not in self.frames:
            raise UserError(
                f"No feature {feature!r} has cut views of the image yet; a feature that asks for them must name one of "
                "kind 'image' in its attribute `after`."
            )
        return self.frames[feature][number]
