"""What evaluators of regions share: reading a record's boxes and what belongs to each, in one pass over a source."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.images import upright_size
from clipjax.data.regions import alternatives, check_box_format, entries, fractions
from clipjax.errors import UserError
from clipjax.evals.records import Encoder, check_source, chunks, field_of, naming_records


class RegionEncoder(Encoder, Protocol):
    """What evaluators of regions need of a model; see `clipjax.encode.encoder.Encoder`."""

    def regions(self, params: Any, images: Any, boxes: Any, how: str) -> list[np.ndarray]:
        """For each image float32 [m, D], L2-normalised."""
        ...

    def visible(self, images: Any, boxes: Any, how: str) -> list[np.ndarray]:
        """For each image bool [m]: whether the model sees anything of the box."""
        ...

    def ground(self, params: Any, images: Any, texts: Any) -> list[np.ndarray]:
        """For each image float32 [m, 4]: boxes of its texts."""
        ...

    def check_regions(self, how: str) -> None:
        """Raises a UserError where `regions` cannot work."""
        ...

    def check_ground(self) -> None:
        """Raises a UserError where `ground` cannot work."""
        ...


class Regions(NamedTuple):
    """The regions of one record that the model sees something of, at least one.

    Attributes:
        record: its index.
        image: its image as the source has it.
        boxes_Mx4: float64, x1, y1, x2, y2 as fractions of the upright image.
        values: a label or text of each.
    """

    record: int
    image: Any
    boxes_Mx4: np.ndarray
    values: list[Any]


class Reader:
    """Reads the regions of a source.

    What cannot be measured is left out and counted, in `counts`: records that the source cannot give, boxes that the
    model sees nothing of (no area, or cut off by its preprocessing), regions without a value. An image that cannot be
    decoded is an error, so that a set is not measured in part without anybody's wish.

    Args:
        name: of the evaluator, for errors.
        source: records with one `image`, `boxes` and `field`.
        encoder: the model's encoder.
        field: has one value for each box.
        value: what an entry of the field means, unless it is None; None: nothing, the region is left out.
        how: regions are embedded; decides what the model sees.
        box_format: of the boxes, see clipjax/data/regions.py.
        chunk: records read at once.
    """

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: RegionEncoder,
        *,
        field: str,
        value: Callable[[Any], Any],
        how: str,
        box_format: str,
        chunk: int,
    ):
        check_source(name, source)
        check_box_format(box_format, f"evaluator {name!r}")
        self.source, self.counts = source, dict.fromkeys(_COUNTS, 0)
        self._name, self._encoder, self._field, self._value = name, encoder, field, value
        self._how, self._box_format, self._chunk = how, box_format, chunk
        self._read(0)  # a wrong field shows at start-up, not after the first interval

    def __iter__(self) -> Iterator[list[Regions]]:
        """Yields the records with regions, some at a time, and counts anew.

        Raises:
            UserError: a record cannot be used, or none has regions.
        """
        self.counts = dict.fromkeys(_COUNTS, 0)
        for some in chunks(range(len(self.source)), self._chunk):
            found = [one for one in map(self._read, some) if one is not None]
            found = [one for one in self._see(found) if one.values]
            self.counts["images"] += len(found)
            self.counts["regions"] += sum(len(one.values) for one in found)
            if found:
                yield found
        if not self.counts["regions"]:
            raise UserError(f"No record of evaluator {self._name!r} has a region to measure.")

    def spread(self, n: int) -> list[Regions]:
        """At most n records with regions, one of each nth part: the first from its middle on, else from its start."""
        found, total = [], len(self.source)
        n = min(n, total)
        for part in range(n):
            start, middle, end = ((2 * part + half) * total // (2 * n) for half in range(3))
            for index in (*range(middle, end), *range(start, middle)):
                one = self._read(index)
                seen = self._see([one] if one else [])
                if seen and seen[0].values:
                    found += seen
                    break
        return found

    def embed(self, params: Any, found: Sequence[Regions]) -> np.ndarray:
        """All regions of some records, float32 [R, D]."""
        images, boxes = [one.image for one in found], [one.boxes_Mx4 for one in found]
        with self.naming(found):
            return np.concatenate(self._encoder.regions(params, images, boxes, self._how))

    def naming(self, found: Sequence[Regions]) -> contextlib.AbstractContextManager[None]:
        """Within it, an image that cannot be used is named by its record."""
        return naming_records(self._name, [one.record for one in found])

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on: how regions are embedded, and counts of the last pass."""
        return {"how": self._how, "records": len(self.source), **self.counts}

    def _read(self, index: int) -> Regions | None:
        where = f"Record {index} of evaluator {self._name!r}"
        try:
            record = self.source[index]
        except BadRecord:
            self.counts["bad_records"] += 1
            return None
        image, boxes, values = (
            field_of(record, field, where) for field in ("image", "boxes", self._field)
        )
        if isinstance(image, list | tuple):
            raise UserError(f"{where} has several images, so its boxes are of none of them.")
        try:
            pixels = self._box_format.endswith("pixels")
            size = upright_size(image) if pixels else (1, 1)
            boxes_Mx4 = fractions(boxes, self._box_format, size)
            values = entries(values, self._field)
            if len(values) != len(boxes_Mx4):
                raise BadRecord(f"{len(boxes_Mx4)} boxes and {len(values)} {self._field}")
            values = [None if value is None else self._value(value) for value in values]
        except BadRecord as error:
            raise UserError(f"{where} cannot be used: {error}.") from error
        exists_M = (boxes_Mx4[:, 2:] > boxes_Mx4[:, :2]).all(axis=1)
        named_M = np.array([value is not None for value in values], bool)
        self.counts["hidden_boxes"] += int((~exists_M).sum())
        self.counts["unnamed_regions"] += int((exists_M & ~named_M).sum())
        return _kept(Regions(index, image, boxes_Mx4, values), exists_M & named_M)

    def _see(self, found: list[Regions]) -> list[Regions]:
        """Leaves out what the model does not see."""
        images, boxes = [one.image for one in found], [one.boxes_Mx4 for one in found]
        with self.naming(found):
            visible = self._encoder.visible(images, boxes, self._how)
        self.counts["hidden_boxes"] += sum(int((~visible_M).sum()) for visible_M in visible)
        return [_kept(one, visible_M) for one, visible_M in zip(found, visible, strict=True)]


_COUNTS = ("images", "regions", "hidden_boxes", "unnamed_regions", "bad_records")


def first_text(value: Any) -> str | None:
    """The text of a region, or the first of several; None if all are blank."""
    return next(iter(alternatives(value)), None)


def _kept(one: Regions, kept_M: np.ndarray) -> Regions:
    values = [value for value, kept in zip(one.values, kept_M, strict=True) if kept]
    return one._replace(boxes_Mx4=one.boxes_Mx4[kept_M], values=values)
