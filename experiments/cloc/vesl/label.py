"""Records with captions become records with regions: the three steps of VESL, a batch of records at a time."""

import collections
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.data.bad import BadRecord
from clipjax.data.images import decode, flatten
from clipjax.errors import UserError
from experiments.cloc.vesl.assign import THRESHOLD, Detections, Regions, regions
from experiments.cloc.vesl.example import Example, image_of
from experiments.cloc.vesl.guard import Failed, Guard
from experiments.cloc.vesl.phrases import MAX_PHRASES, queries

FIELDS = ("boxes", "region_text", "region_scores", "captions", "phrases")  # that are written
SOURCE = "source_"  # before the name of a field that had the name of one of these


class Labelled(NamedTuple):
    """What became of a record.

    Attributes:
      record: with its regions; None: it is a bad one.
      reason: why it is.
      counts: what else is to be counted.
      dropped: names of fields that were left out.
      broken: it is bad because a model failed, which may be broken.
    """

    record: dict[str, Any] | None
    reason: str
    counts: Mapping[str, int] = {}
    dropped: Sequence[str] = ()
    broken: bool = False


class Labeller:
    """VESL with its models loaded. May be called from several threads; the models work for one at a time.

    Args:
      captioner: see captioners.py.
      tagger: see taggers.py.
      detector: see detectors.py.
      threshold: score above which a box stays.
      phrases: how many of a record's noun phrases are kept.
      drop: fields that are left out of what is written; the models see them.

    Raises:
      UserError: what the models' `load` raises.
    """

    def __init__(
        self,
        captioner: Any,
        tagger: Any,
        detector: Any,
        threshold: float = THRESHOLD,
        phrases: int = MAX_PHRASES,
        drop: Sequence[str] = (),
    ):
        self._captioner, self._detector = Guard(captioner, "captioner"), Guard(detector, "detector")
        self._queries = Guard(
            lambda captions: [queries(c, tagger, phrases) for c in captions], "tagger"
        )
        self._threshold = threshold
        self._drop, self._lock = tuple(drop), threading.Lock()
        for model in (captioner, tagger, detector):
            model.load()

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> list[Labelled]:
        """Labels a batch of records, in their order.

        Every record comes out with `boxes` float32 [M,4] (x1,y1,x2,y2, fractions of the upright image), `region_text`
        (M texts), `region_scores` float32 [M], the `captions` and the `phrases` that were asked for. Fields of these
        names that were there are named `source_...`; all others stay what they are. M may be 0.

        Raises:
          UserError: of a model, see `Guard`; captions that are not lists of texts; a `source_...` that is there.
        """
        done: list[Labelled | None] = [None] * len(records)
        opened: list[tuple[int, Example]] = []
        for number, record in enumerate(records):
            try:
                image = flatten(decode(image_of(record)))
                opened.append((number, Example(record, image)))
            except BadRecord as error:
                done[number] = Labelled(None, str(error))
        with self._lock:
            asked = self._ask(opened, done)
            found = self._detector([e for _, e, _ in asked])
        for (number, example, facts), detections in zip(asked, found, strict=True):
            done[number] = self._finish(example, facts, detections)
        return [d for d in done if d is not None]

    def _ask(
        self, opened: Sequence[tuple[int, Example]], done: list[Labelled | None]
    ) -> list[tuple[int, Example, dict[str, Any]]]:
        """(place, example with phrases, {"captions", "beyond"}) of all records that have captions."""
        asked = []
        captions = self._captioner([e for _, e in opened])
        for (number, example), texts in zip(opened, captions, strict=True):
            if isinstance(texts, Failed):
                done[number] = _bad(texts)
                continue
            if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
                raise UserError(
                    f"The captioner must give a list of texts for every image, and has given {texts!r}."
                )
            if not texts:
                done[number] = Labelled(None, "there is no caption")
                continue
            (found,) = self._queries([texts])
            if isinstance(found, Failed):
                done[number] = _bad(found)
                continue
            phrases, beyond = found
            facts = {"captions": list(texts), "beyond": beyond}
            asked.append((number, example._replace(phrases=tuple(phrases)), facts))
        return asked

    def _finish(
        self, example: Example, facts: Mapping[str, Any], detections: Detections | Failed
    ) -> Labelled:
        if isinstance(detections, Failed):
            return _bad(detections)
        try:
            kept = regions(detections, len(example.phrases), self._threshold)
        except BadRecord as error:
            return Labelled(None, str(error))
        return self._write(example, facts, kept)

    def _write(self, example: Example, facts: Mapping[str, Any], kept: Regions) -> Labelled:
        counts = collections.Counter(
            {
                "captions": len(facts["captions"]),
                "phrases": len(example.phrases),
                "phrases beyond the first": facts["beyond"],
                "records without phrases": not example.phrases,
                "records without regions": not len(kept.boxes_Mx4),
                "regions": len(kept.boxes_Mx4),
                "boxes outside of the image": kept.outside,
            }
        )
        fields = {k: v for k, v in example.record.items() if k not in self._drop}
        dropped = [name for name in self._drop if name in example.record]
        for name in FIELDS:
            if name not in fields:
                continue
            if SOURCE + name in fields:
                raise UserError(
                    f"The records have a field {name!r} and a field {SOURCE + name!r}, which would be overwritten; "
                    f"they seem to be labelled already. Leave one out with --drop={SOURCE + name}."
                )
            fields[SOURCE + name] = fields.pop(name)
            counts[f"fields {name!r} now named {SOURCE + name!r}"] += 1
        fields |= {
            "boxes": kept.boxes_Mx4,
            "region_text": [example.phrases[p] for p in kept.phrase_M],
            "region_scores": kept.score_M,
            "captions": facts["captions"],
            "phrases": list(example.phrases),
        }
        return Labelled(fields, "", {k: int(v) for k, v in counts.items() if v}, dropped)


def _bad(failed: Failed) -> Labelled:
    return Labelled(None, failed.reason, broken=failed.broken)
