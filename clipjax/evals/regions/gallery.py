"""What evaluators of regions share in showing examples."""

from collections.abc import Sequence

import numpy as np

from clipjax.evals import metrics
from clipjax.evals.regions.records import Regions
from clipjax.log.pages.images import Answer
from clipjax.log.pages.region_galleries import Region

SPREAD_NOTE = "Images are evenly spaced through the set, not chosen."
GALLERY_NOTE = f"{SPREAD_NOTE} Numbers are cosine similarities."


def nearest_texts(
    one: Regions,
    region_MxD: np.ndarray,
    text_TxD: np.ndarray,
    texts: Sequence[str],
    right: Sequence[int],
    *,
    answers: int = 3,
) -> list[Region]:
    """The regions of a record with their nearest texts.

    Args:
        one: the record.
        region_MxD: its regions' embeddings.
        text_TxD: of all texts.
        texts: all texts.
        right: index of each region's right text.
        answers: nearest texts to keep.
    """
    index_MxT, score_MxT = metrics.top_k(region_MxD, text_TxD, len(texts))
    regions = []
    for box_4, own, index_T, score_T in zip(
        one.boxes_Mx4, right, index_MxT, score_MxT, strict=True
    ):
        own_score = score_T[index_T == own][0]
        rank = int((score_T >= own_score).sum())  # where scores tie, the worst case
        best = [
            Answer(texts[i], float(score), i == own)
            for i, score in zip(index_T[:answers], score_T[:answers], strict=True)
        ]
        regions.append(Region(box_4.tolist(), texts[own], best, rank))
    return regions
