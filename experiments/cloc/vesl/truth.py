"""A detector for composed scenes that reads what is there from the record, and errs as much as it is told to."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError
from experiments.cloc.vesl.assign import Detections
from experiments.cloc.vesl.example import Example, image_of
from experiments.cloc.vesl.meaning import meaning_of

RIGHT, WRONG = 0.6, 0.01  # score of a phrase that means the object, and of one that does not


class TruthDetector:
    """Finds what a phrase means by its head (meaning.py) in the record's `boxes`.

    What it gives is a function of the seed, the image and the phrases, and of nothing else.

    Args:
      miss: probability that an object is not found.
      jitter: standard deviation of each edge of a box, as a share of the box's width or height.
      false_boxes: expected number of boxes of an image in which nothing is (a Poisson number); each gets a phrase at
        random, and a score from 0.1 to 0.6.
      wrong_phrase: probability that an object gets the score of another phrase, where there is one.
      score_noise: standard deviation that is added to the logit of every score.
      seed: of all of this; 0 or more.
    """

    def __init__(
        self,
        miss: float = 0.0,
        jitter: float = 0.0,
        false_boxes: float = 0.0,
        wrong_phrase: float = 0.0,
        score_noise: float = 0.0,
        seed: int = 0,
    ):
        for name, value in (("miss", miss), ("wrong_phrase", wrong_phrase)):
            if not 0 <= value <= 1:
                raise UserError(
                    f"The detector 'truth' needs a probability for {name!r}, not {value!r}."
                )
        if min(jitter, false_boxes, score_noise) < 0:
            raise UserError(
                "The detector 'truth' needs jitter, false_boxes and score_noise of 0 or more."
            )
        if seed < 0:
            raise UserError(f"The detector 'truth' needs a seed of 0 or more, not {seed}.")
        self._miss, self._wrong = miss, wrong_phrase
        self._jitter, self._false, self._noise = jitter, false_boxes, score_noise
        self._seed = seed

    def load(self) -> None:
        """There is nothing to load."""

    def __call__(self, examples: Sequence[Example]) -> list[Detections]:
        """Raises BadRecord for a record that is no scene."""
        return [self._find(example) for example in examples]

    def _find(self, example: Example) -> Detections:
        record, phrases = example.record, example.phrases
        try:
            boxes_Mx4 = np.asarray(record["boxes"], np.float64).reshape(-1, 4)
            meaning = meaning_of(record)
        except KeyError as error:
            raise BadRecord(f"the detector 'truth' needs the field {error}") from error
        rng = np.random.default_rng(_seed(self._seed, image_of(record)))
        m, p = len(boxes_Mx4), len(phrases)
        scores_MxP = np.full((m, p), WRONG)
        for number, phrase in enumerate(phrases):
            scores_MxP[meaning(phrase), number] = RIGHT
        found_M = rng.random(m) >= self._miss
        swapped_M = rng.random(m) < self._wrong
        for i in np.flatnonzero(swapped_M & (scores_MxP > WRONG).any(axis=1)):
            others = np.flatnonzero(scores_MxP[i] == WRONG)
            if len(others):
                scores_MxP[i] = WRONG
                scores_MxP[i, rng.choice(others)] = RIGHT
        sides_Mx2 = boxes_Mx4[:, 2:] - boxes_Mx4[:, :2]
        noise_Mx4 = rng.normal(size=(m, 4)) * np.tile(sides_Mx2, 2)
        boxes_Mx4 = _ordered(boxes_Mx4 + self._jitter * noise_Mx4)
        logits_MxP = np.log(scores_MxP / (1 - scores_MxP)) + self._noise * rng.normal(size=(m, p))
        boxes_Fx4, scores_FxP = self._imagined(rng, p)
        boxes_Nx4 = np.concatenate([boxes_Mx4[found_M], boxes_Fx4])
        scores_NxP = np.concatenate([1 / (1 + np.exp(-logits_MxP[found_M])), scores_FxP])
        return Detections(boxes_Nx4.astype(np.float32), scores_NxP.astype(np.float32))

    def _imagined(self, rng: np.random.Generator, phrases: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes in which nothing is, [F,4] and [F,P]."""
        count = int(rng.poisson(self._false)) if phrases else 0
        boxes_Fx4 = _ordered(rng.random((count, 4)))
        scores_FxP = np.full((count, phrases), WRONG)
        if count:
            scores_FxP[np.arange(count), rng.integers(phrases, size=count)] = rng.uniform(
                0.1, 0.6, count
            )
        return boxes_Fx4, scores_FxP


def _ordered(boxes_Nx4: np.ndarray) -> np.ndarray:
    """Left before right, top before bottom."""
    low, high = boxes_Nx4[:, :2], boxes_Nx4[:, 2:]
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)


def _seed(seed: int, image: Any) -> list[int]:
    """A seed that follows the image wherever it lies."""
    data = image.tobytes() if isinstance(image, np.ndarray) else bytes(image)
    return [seed, int.from_bytes(hashlib.sha256(data).digest()[:8], "little")]
