"""Grounding: a text in, a box out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.errors import UserError
from clipjax.evals import metrics
from clipjax.evals.regions.gallery import SPREAD_NOTE
from clipjax.evals.regions.records import Reader, RegionEncoder, Regions, first_text
from clipjax.evals.templates import text_hash
from clipjax.log.pages.region_galleries import Found, GroundingGallery


class Grounding:
    """How well the boxes that a model gives for an image's texts lie on the true ones.

    Every distinct text of an image is asked once. Where several of its boxes have that text, the one that fits best
    counts. True boxes are whole, also where the model's preprocessing cuts some of them off.

    Args:
        name: the evaluator's name, which prefixes its metrics.
        source: records with one `image`, `boxes` and a text, or a list of them, for each box.
        encoder: the model's encoder.
        text_field: which field of a record holds the texts; of several of a region the first is used.
        box_format: of the boxes: "xyxy", "xywh", "xyxy_pixels" or "xywh_pixels".
        chunk: records given to the encoder at once.

    Attributes:
        name: as given.
        protocol: after `run`, what the numbers depend on: counts, a hash of the texts, and as chance what the mean of
            all true boxes gets where it is the answer to every text.
    """

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: RegionEncoder,
        *,
        text_field: str = "names",
        box_format: str = "xyxy",
        chunk: int = 256,
    ):
        encoder.check_ground()
        self.name = name
        self.protocol: dict[str, Any] = {}
        self._encoder, self._text_field = encoder, text_field
        self._reader = Reader(
            name,
            source,
            encoder,
            field=text_field,
            value=first_text,
            how="model",
            box_format=box_format,
            chunk=chunk,
        )

    def run(self, params: Any) -> dict[str, float]:
        """Returns `iou`, the mean, and `acc@0.5`, the share of texts with an IoU of at least 0.5."""
        texts: list[str] = []
        right: list[np.ndarray] = []
        parts = []
        for found in self._reader:
            asked = [_questions(one) for one in found]
            parts += self._ground(params, found, asked)
            texts += [text for question in asked for text in question]
            right += [boxes for question in asked for boxes in question.values()]
        mean_4 = np.concatenate(right).mean(axis=0)
        self.protocol = {
            "kind": "grounding",
            **self._reader.protocol(),
            "texts": len(texts),
            "texts_sha256": text_hash(texts),
            "text_field": self._text_field,
            "chance": _score([mean_4] * len(right), right),
        }
        return _score(np.concatenate(parts), right)

    def galleries(self, params: Any, n: int = 8) -> list[GroundingGallery]:
        """For a report: the texts of n images with their true boxes and those that the model gives."""
        spread = self._reader.spread(n)
        asked = [_questions(one) for one in spread]
        framed = []
        for one, question, boxes_Mx4 in zip(
            spread, asked, self._ground(params, spread, asked), strict=True
        ):
            found = [
                Found(text, right_Kx4, found_4, float(metrics.box_iou(found_4, right_Kx4).max()))
                for (text, right_Kx4), found_4 in zip(question.items(), boxes_Mx4, strict=True)
            ]
            framed.append((one.image, found))
        return [GroundingGallery(f"{self.name}: the box of a text", framed, SPREAD_NOTE)]

    def _ground(
        self, params: Any, found: Sequence[Regions], asked: Sequence[dict[str, np.ndarray]]
    ) -> list[np.ndarray]:
        images = [one.image for one in found]
        with self._reader.naming(found):
            boxes = self._encoder.ground(params, images, [*map(list, asked)])
        if not all(np.isfinite(boxes_Mx4).all() for boxes_Mx4 in boxes):
            raise UserError(
                "The boxes are not all finite: the model has diverged; use an earlier checkpoint."
            )
        return boxes


def _questions(one: Regions) -> dict[str, np.ndarray]:
    """The distinct texts of a record, and all boxes [k, 4] that each of them means."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(one.values):
        places.setdefault(text, []).append(place)
    return {text: one.boxes_Mx4[some] for text, some in places.items()}


def _score(found_Nx4: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> dict[str, float]:
    pairs = zip(found_Nx4, right, strict=True)
    iou_N = np.array([metrics.box_iou(found_4, boxes_kx4).max() for found_4, boxes_kx4 in pairs])
    return {"iou": float(iou_N.mean()), "acc@0.5": float((iou_N >= 0.5).mean())}
