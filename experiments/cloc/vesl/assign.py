"""VESL's third step, after the detector: which boxes stay, and which phrase each of them gets."""

from typing import NamedTuple

import numpy as np

from clipjax.data.bad import BadRecord

THRESHOLD = 0.1


class Detections(NamedTuple):
    """What a detector finds in one image.

    Attributes:
      boxes_Nx4: float32, x1,y1,x2,y2 in fractions of the upright image; may reach beyond it.
      scores_NxP: float32, a score from 0 to 1 of every box for every phrase, each for itself (a sigmoid).
    """

    boxes_Nx4: np.ndarray
    scores_NxP: np.ndarray


class Regions(NamedTuple):
    """Boxes that stay.

    Attributes:
      boxes_Mx4: float32, x1,y1,x2,y2 in [0,1] of the upright image.
      phrase_M: int64, the phrase of each.
      score_M: float32, its score.
      outside: how many more boxes had a score, and no area inside of the image.
    """

    boxes_Mx4: np.ndarray
    phrase_M: np.ndarray
    score_M: np.ndarray
    outside: int


def regions(found: Detections, phrases: int, threshold: float = THRESHOLD) -> Regions:
    """Each box with its highest-scoring phrase, the first of equals, if that score is above the threshold.

    Boxes keep the detector's order, and overlapping ones all stay: neither CLOC nor OWLv2 removes any.

    Args:
      found: of one image.
      phrases: their number P.
      threshold: CLOC's is 0.1.

    Raises:
      BadRecord: arrays of other shapes, or numbers that are none.
    """
    boxes_Nx4 = np.asarray(found.boxes_Nx4, np.float32).reshape(-1, 4)
    scores_NxP = np.asarray(found.scores_NxP, np.float32)
    if scores_NxP.shape != (len(boxes_Nx4), phrases):
        raise BadRecord("detector's boxes and scores do not fit together")
    if not np.isfinite(boxes_Nx4).all() or not np.isfinite(scores_NxP).all():
        raise BadRecord("detector's boxes or scores are not finite")
    if not scores_NxP.size:
        return Regions(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), scores_NxP.ravel(), 0)
    phrase_N = scores_NxP.argmax(axis=1)
    score_N = scores_NxP.max(axis=1)
    boxes_Nx4 = np.clip(boxes_Nx4, 0, 1)
    above_N = score_N > threshold
    inside_N = (boxes_Nx4[:, 2:] > boxes_Nx4[:, :2]).all(axis=1)
    kept_N = above_N & inside_N
    outside = int((above_N & ~inside_N).sum())
    return Regions(boxes_Nx4[kept_N], phrase_N[kept_N], score_N[kept_N], outside)
