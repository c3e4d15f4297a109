"""The stages of a training sample one by one, for timing: what `clipjax data bench` runs."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from clipjax.data.augment import augment
from clipjax.data.bad import BadRecord
from clipjax.data.encoded_image import EncodedImage
from clipjax.data.features.image import Image as Views
from clipjax.data.features.text import Text
from clipjax.data.pipeline import batches
from clipjax.data.stream import Stream
from clipjax.errors import UserError

RECORDS, BYTES = 256, 1 << 27  # that the stages after reading work on, in memory
PREFETCH = 2


class Stages:
    """Some records of a stream, prepared so that each stage can be run without the others.

    Args:
      stream: of samples with the features `image` and `text`.

    Attributes:
      size: side of a view.
      sides: shorter sides of the images.
      jpegs: images that libjpeg-turbo decodes by itself.

    Raises:
      UserError: none of the records can be used, or a run without images or texts.
    """

    def __init__(self, stream: Stream):
        image, text = (stream.features.made.get(name) for name in ("image", "text"))
        if not isinstance(image, Views) or not isinstance(text, Text):
            raise UserError(
                "clipjax data bench times the features `image` and `text`, and config.data.features lacks one of them."
            )
        self._stream, self._image, self.size = stream, image, image.size
        self._tokenizer = text.tokenizer
        self._views: list[_View] = []
        self._captions: list[tuple[Any, Any]] = []
        size = place = 0
        while place < 4 * RECORDS and len(self._views) < RECORDS and size < BYTES:
            source, number = stream.order.draw(place, 0)
            place += 1
            try:
                record = stream.sources[source][number]
                policy = text.policy(stream.names[source])
                policy(record, np.random.default_rng(0))
                images = record.get("image")
                image = images[0] if isinstance(images, list | tuple) else images
                view = _View(image)
                self._recolour(view, len(self._views))
            except (BadRecord, IndexError):
                continue
            self._views.append(view)
            self._captions.append((policy, record | {"image": None}))
            size += len(image) + view.bytes
        if not self._views:
            raise UserError(
                f"None of {place} records can be used; look at them with: clipjax data verify."
            )
        self.sides = [min(view.size) for view in self._views]
        self.jpegs = [v.encoded for v in self._views if _is_jpeg(v.encoded)]

    def read(self, place: int) -> None:
        """Reads the record of a place of the stream."""
        source, number = self._stream.order.draw(place, 0)
        with contextlib.suppress(BadRecord):
            self._stream.sources[source][number]

    def decode(self, number: int) -> None:
        """Decodes an image as finely as its view needs."""
        self._views[number % len(self._views)].decode()

    def augment(self, number: int) -> None:
        """Makes the first view of a decoded image: crop, resize, colours."""
        number %= len(self._views)
        self._recolour(self._views[number], number)

    def tokenize(self, number: int) -> None:
        """Chooses captions and makes ids of them."""
        policy, record = self._captions[number % len(self._captions)]
        self._tokenizer(policy(record, np.random.default_rng(number)))

    def decode_all(self, number: int) -> None:
        """Decodes a JPEG to the last pixel, with nothing around libjpeg-turbo."""
        simplejpeg.decode_jpeg(self.jpegs[number % len(self.jpegs)], "RGB")

    def _recolour(self, view: "_View", number: int) -> None:
        rng = np.random.default_rng(number)
        augment(view, self.size, self._image.views[0], self._image.fitting, rng)  # type: ignore[arg-type]


class _View:
    """An image that is decoded when it is first asked for, always in the same way after that.

    Attributes:
      encoded: bytes, or an array.
      size: (width, height).
      bytes: of the pixels.
    """

    def __init__(self, encoded: Any):
        self.encoded, self.size, self.bytes = encoded, EncodedImage(encoded).size, 0
        self._ask: Callable[[EncodedImage], Any] | None = None
        self._found: Any = None

    def pixels(self, scale: float, background: tuple[int, int, int]) -> np.ndarray:
        """As `EncodedImage.pixels`."""
        return self._once(lambda encoded: encoded.pixels(scale, background))

    def image(self, background: tuple[int, int, int]) -> Image.Image:
        """As `EncodedImage.image`."""
        return self._once(lambda encoded: encoded.image(background))

    def decode(self) -> Any:
        """What was asked for, decoded again."""
        return self._ask(EncodedImage(self.encoded))

    def _once(self, ask: Callable[[EncodedImage], Any]) -> Any:
        if self._ask is None:
            self._ask, self._found = ask, ask(EncodedImage(self.encoded))
            self.bytes = np.asarray(self._found).nbytes
        return self._found


def _is_jpeg(image: Any) -> bool:
    """Whether libjpeg-turbo makes RGB of it."""
    if not isinstance(image, bytes) or not image.startswith(b"\xff\xd8\xff"):
        return False
    try:
        simplejpeg.decode_jpeg(image, "RGB")
    except ValueError:
        return False
    return True


def rate(function: Callable[[int], Any], seconds: float) -> float:
    """Calls a second of `function(0)`, `function(1)`, ..., for about so many seconds."""
    start, number = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not number:
        function(number)
        number += 1
    return number / spent


class Setting(NamedTuple):
    """How batches are read: `threads` and `workers` of the section `data`."""

    threads: int
    workers: int


class Pipeline:
    """Batches of a stream with one setting, which go on where they were between measurements."""

    def __init__(self, stream: Stream, setting: Setting, batch_size: int):
        self._size, self._ahead = batch_size, (PREFETCH + 1) * max(1, setting.workers)
        self._batches = batches(
            stream, batch_size, 0, 1 << 40, prefetch=PREFETCH, **setting._asdict()
        )

    def rate(self, seconds: float) -> float:
        """Samples a second, without those that were read ahead before."""
        for _ in range(self._ahead):
            next(self._batches)
        return self._size * rate(lambda _: next(self._batches), seconds)
