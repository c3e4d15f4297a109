"""How good region labels of composed scenes are: which (box, phrase) pairs are right, which objects are lost, and why.

A pair is right if its box has an IoU of at least 0.5 with an object's, and its phrase means this object (meaning.py, by
its name or by its head). Pairs are taken in the order of their scores, as in detection benchmarks; each takes the
object with the largest IoU that is still free, so a second right pair of an object is a false one. An object that no
pair has taken is lost. precision = right pairs / pairs, recall = right pairs / objects.
"""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.cloc.vesl.meaning import LEVELS, Meaning, meaning_of

IOU = 0.5


class Score(NamedTuple):
    """Counts of one record or of many.

    Attributes:
      objects, pairs, right: their numbers.
      lost: why objects were lost -> how many.
      false: why pairs are false -> how many.
    """

    objects: int
    pairs: int
    right: int
    lost: collections.Counter
    false: collections.Counter

    @property
    def precision(self) -> float:
        """Share of the pairs that is right; 1 if there are none."""
        return self.right / self.pairs if self.pairs else 1.0

    @property
    def recall(self) -> float:
        """Share of the objects that has a right pair; 1 if there are none."""
        return self.right / self.objects if self.objects else 1.0

    def __add__(self, other: "Score") -> "Score":
        return Score(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Score(0, 0, 0, collections.Counter(), collections.Counter())


def score(record: Mapping[str, Any], level: str) -> Score:
    """The labels of one scene against its truth.

    Args:
      record: of VESL's output, with the scene's fields `names`, `source_boxes` and `source_region_text`.
      level: one of `meaning.LEVELS`.
    """
    assert level in LEVELS
    meaning = meaning_of(record)
    truth_Mx4 = np.asarray(record["source_boxes"], np.float64).reshape(-1, 4)
    boxes_Nx4 = np.asarray(record["boxes"], np.float64).reshape(-1, 4)
    texts, scores_N = record["region_text"], np.asarray(record["region_scores"])
    iou_NxM = iou(boxes_Nx4, truth_Mx4)
    meant = [set(meaning(text, level)) for text in texts]
    taken: set[int] = set()
    false: collections.Counter[str] = collections.Counter()
    for n in np.argsort(-scores_N, kind="stable"):
        near = [m for m in np.argsort(-iou_NxM[n], kind="stable") if iou_NxM[n, m] >= IOU]
        fitting = [m for m in near if m in meant[n]]
        free = [m for m in fitting if m not in taken]
        if free:
            taken.add(free[0])
        else:
            false["twice" if fitting else "wrong phrase" if near else "no object there"] += 1
    lost = collections.Counter(
        _why(m, meaning, record["phrases"], iou_NxM[:, m], level)
        for m in range(len(truth_Mx4))
        if m not in taken
    )
    return Score(len(truth_Mx4), len(texts), len(taken), lost, false)


def _why(m: int, meaning: Meaning, phrases: Any, iou_N: np.ndarray, level: str) -> str:
    """Why an object was lost: the first step of VESL that lost it."""
    if not any(m in meaning(phrase, level) for phrase in phrases):
        return "no phrase means it"
    return "its box has another phrase" if (iou_N >= IOU).any() else "no box"


def iou(boxes_Nx4: np.ndarray, others_Mx4: np.ndarray) -> np.ndarray:
    """Intersection over union, float64 [N,M]; 0 where both are empty."""
    low = np.maximum(boxes_Nx4[:, None, :2], others_Mx4[None, :, :2])
    high = np.minimum(boxes_Nx4[:, None, 2:], others_Mx4[None, :, 2:])
    both_NxM = np.prod(np.maximum(high - low, 0), axis=-1)
    area_N = np.prod(boxes_Nx4[:, 2:] - boxes_Nx4[:, :2], axis=-1)
    area_M = np.prod(others_Mx4[:, 2:] - others_Mx4[:, :2], axis=-1)
    either_NxM = area_N[:, None] + area_M - both_NxM
    return np.where(either_NxM > 0, both_NxM / np.where(either_NxM > 0, either_NxM, 1), 0.0)
