"""Retrieval recall and classification accuracy, in NumPy.

**Ties.** Where scores are equal, the order among them is taken to be random and the *expected* hit
is counted. A collapsed model that gives everything the same score therefore gets exactly chance,
whatever the order of the gallery, and the result is deterministic. (Breaking ties by index, or
counting only the strictly better candidates, would hand such a model up to 100 %.)

**Memory.** Scores are made in blocks of rows: N x M never exists at once. They are made in float64,
and scores closer than rounding count as tied, so the block size cannot change a result.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from clipjax.errors import UserError

_BLOCK_ENTRIES = 1 << 22  # scores held at once: 32 MiB of float64
_TIE = 1e-12  # relative to the norms; float64 sums of float32 products are off by about 1e-15


class Groups(NamedTuple):
    """Positives by group id: a gallery entry is right for a query when their ids are equal.

    Attributes:
        query_N: ids of the queries, integers or strings.
        gallery_M: ids of the gallery's entries, of the same kind.
    """

    query_N: Sequence | np.ndarray
    gallery_M: Sequence | np.ndarray


Positives = Groups | np.ndarray | Sequence


def expected_hits(
    better_N: np.ndarray, tied_N: np.ndarray, right_N: np.ndarray, ks: Sequence[int]
) -> np.ndarray:
    """Probability that a right entry is among the first k, with ties in random order.

    Args:
        better_N: how many wrong entries score above the best right one.
        tied_N: how many wrong entries score the same as the best right one.
        right_N: how many right entries have that score (at least 1).
        ks: list of k.

    Returns:
        float64 [N, len(ks)]. With s = k - better slots left: 1 - C(tied, s) / C(tied + right, s).
    """
    hits_NxK = np.empty((len(better_N), len(ks)))
    for column, k in enumerate(ks):
        slots_N = np.clip(k - better_N, 0, tied_N + right_N)
        miss_N = np.ones(len(better_N))
        for j in range(int(slots_N.max(initial=0))):
            left_N = np.maximum(tied_N + right_N - j, 1)
            miss_N *= np.where(j < slots_N, np.maximum(tied_N - j, 0) / left_N, 1.0)
        hits_NxK[:, column] = 1.0 - miss_N
    return hits_NxK


def retrieval_recall(
    query_NxD: np.ndarray,
    gallery_MxD: np.ndarray,
    positives: Positives,
    ks: Sequence[int] = (1, 5, 10),
    *,
    block_rows: int | None = None,
) -> dict[str, float]:
    """Share of queries with at least one right entry among the k nearest (inner product).

    Args:
        query_NxD: query embeddings, normalised by the caller.
        gallery_MxD: gallery embeddings, normalised by the caller.
        positives: `Groups`, or gallery indices: an array [N] (one each), an array [N, P], or N
            sequences of any length. Every query needs at least one.
        ks: list of k; a k of M or more gives 1 by definition.
        block_rows: queries scored at once (default: as many as fit in about 32 MiB).

    Returns:
        `{"R@1": ..., ...}` in [0, 1].

    Raises:
        UserError: an embedding is not finite.
        ValueError: shapes do not fit, a query has no positive, or an index is out of range.

    Cost: 2 N M D FLOPs in float64, memory (N + M) D + block_rows x M.
    """
    ks = _check_ks(ks)
    right_indices = positive_indices(positives, len(query_NxD), len(gallery_MxD))
    hits = []
    for start, scores_bxM, tolerance in _score_blocks(query_NxD, gallery_MxD, block_rows):
        own = [row[right_indices(start + i)] for i, row in enumerate(scores_bxM)]
        best_b = np.array([scores.max() for scores in own])
        right_b = np.array([(s >= b - tolerance).sum() for s, b in zip(own, best_b, strict=True)])
        better_b = (scores_bxM > (best_b + tolerance)[:, None]).sum(axis=1)
        tied_b = (scores_bxM >= (best_b - tolerance)[:, None]).sum(axis=1) - better_b - right_b
        hits.append(expected_hits(better_b, tied_b, right_b, ks))
    return _named("R", ks, np.concatenate(hits).mean(axis=0))


def chance_recall(
    positives: Positives, queries: int, gallery: int, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """What `retrieval_recall` gives a model whose scores are all equal: the chance level."""
    right_indices = positive_indices(positives, queries, gallery)
    right_N = np.array([len(right_indices(i)) for i in range(queries)])
    hits = expected_hits(np.zeros(queries, int), gallery - right_N, right_N, _check_ks(ks))
    return _named("R", ks, hits.mean(axis=0))


def positive_indices(
    positives: Positives, queries: int, gallery: int
) -> Callable[[int], np.ndarray]:
    """Returns a function from a query's index to the distinct gallery indices right for it."""
    if isinstance(positives, Groups):
        query_ids, gallery_ids = np.asarray(positives.query_N), np.asarray(positives.gallery_M)
        if query_ids.shape != (queries,) or gallery_ids.shape != (gallery,):
            raise ValueError(
                f"groups have shapes {query_ids.shape} and {gallery_ids.shape}, "
                f"expected ({queries},) and ({gallery},)"
            )
        order_M = np.argsort(gallery_ids, kind="stable")
        sorted_ids = gallery_ids[order_M]
        first_N = np.searchsorted(sorted_ids, query_ids, side="left")
        last_N = np.searchsorted(sorted_ids, query_ids, side="right")

        def look_up(i: int) -> np.ndarray:
            found = order_M[first_N[i] : last_N[i]]
            if not len(found):
                raise ValueError(f"query {i} (group {query_ids[i]}) has no positive")
            return found

        return look_up
    if len(positives) != queries:
        raise ValueError(f"positives are given for {len(positives)} queries of {queries}")

    def look_up_list(i: int) -> np.ndarray:
        found = np.unique(np.atleast_1d(np.asarray(positives[i], dtype=np.int64)))
        if not len(found):
            raise ValueError(f"query {i} has no positive")
        if found[0] < 0 or found[-1] >= gallery:
            raise ValueError(f"query {i} has a positive outside the gallery of {gallery}")
        return found

    return look_up_list


def top_k(query_NxD: np.ndarray, gallery_MxD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best entries of every query, best first (equal scores by index, for showing only).

    Returns:
        int64 indices [N, min(k, M)] and their float64 scores.
    """
    found = []
    for _, scores_bxM, _ in _score_blocks(query_NxD, gallery_MxD, None):
        index_bxk = np.argsort(-scores_bxM, axis=1, kind="stable")[:, :k]
        found.append((index_bxk, np.take_along_axis(scores_bxM, index_bxk, axis=1)))
    return np.concatenate([i for i, _ in found]), np.concatenate([s for _, s in found])


def classification_metrics(logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Accuracy of logits.

    Args:
        logits_NxC: scores of C classes.
        labels_N: the right class of each row, in [0, C).

    Returns:
        `acc@1`, `acc@5` and `mean_per_class` (recall of each class that occurs in `labels_N`,
        averaged), all in [0, 1]. `acc@5` is left out up to 5 classes (CLIP_benchmark gives NaN
        there).

    Raises:
        UserError: a logit is NaN.
        ValueError: no rows, shapes do not fit, or a label is out of range.
    """
    logits_NxC, labels_N = np.asarray(logits_NxC), np.asarray(labels_N)
    classes = logits_NxC.shape[1]
    ks = (1, 5) if classes > 5 else (1,)
    _check_labels(labels_N, len(logits_NxC), classes)
    if np.isnan(logits_NxC).any():
        raise UserError("The logits hold NaN: the model has diverged; use an earlier checkpoint.")
    return _accuracies(_label_hits(logits_NxC, labels_N, ks, 0.0), labels_N, ks)


def nearest_class_metrics(
    image_NxD: np.ndarray,
    class_CxD: np.ndarray,
    labels_N: np.ndarray,
    *,
    block_rows: int | None = None,
) -> dict[str, float]:
    """`classification_metrics` of `image_NxD @ class_CxD.T`, made in blocks of rows."""
    labels_N, classes = np.asarray(labels_N), len(class_CxD)
    ks = (1, 5) if classes > 5 else (1,)
    _check_labels(labels_N, len(image_NxD), classes)
    hits = [
        _label_hits(scores_bxC, labels_N[start : start + len(scores_bxC)], ks, tolerance)
        for start, scores_bxC, tolerance in _score_blocks(image_NxD, class_CxD, block_rows)
    ]
    return _accuracies(np.concatenate(hits), labels_N, ks)


def pair_hits(query_NxD: np.ndarray, right_NxD: np.ndarray, wrong_NxD: np.ndarray) -> np.ndarray:
    """Whether each query is nearer (inner product) to its right answer than to its wrong one.

    Args:
        query_NxD: query embeddings, normalised by the caller, as the others.
        right_NxD: the right answer of each.
        wrong_NxD: a wrong one.

    Returns:
        float64 [N]: 1 if it is, 0 if not, 0.5 where both are equally near.

    Raises:
        UserError: an embedding is not finite.
    """
    query_NxD, right_NxD, wrong_NxD = (
        np.asarray(x, np.float64) for x in (query_NxD, right_NxD, wrong_NxD)
    )
    _check_finite(query_NxD, right_NxD, wrong_NxD)
    difference_N = np.einsum("nd,nd->n", query_NxD, right_NxD - wrong_NxD)
    norms_N = [np.linalg.norm(x, axis=1) for x in (query_NxD, right_NxD, wrong_NxD)]
    tolerance_N = _TIE * norms_N[0] * np.maximum(norms_N[1], norms_N[2])
    return np.where(np.abs(difference_N) <= tolerance_N, 0.5, difference_N > 0)


def box_iou(box_4: np.ndarray, boxes_Kx4: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others, float64 [K]; 0 for a box without area or with crossed corners."""
    box_4, boxes_Kx4 = np.asarray(box_4, np.float64), np.asarray(boxes_Kx4, np.float64)
    low, high = (
        np.maximum(box_4[:2], boxes_Kx4[:, :2]),
        np.minimum(box_4[2:], boxes_Kx4[:, 2:]),
    )
    shared_K = np.prod(np.maximum(high - low, 0), axis=1)
    area = np.prod(np.maximum(box_4[2:] - box_4[:2], 0))
    areas_K = np.prod(np.maximum(boxes_Kx4[:, 2:] - boxes_Kx4[:, :2], 0), axis=1)
    union_K = area + areas_K - shared_K
    return shared_K / np.where(union_K > 0, union_K, 1)


def _label_hits(scores_bxC, labels_b, ks, tolerance: float) -> np.ndarray:
    own_b = np.take_along_axis(scores_bxC, labels_b[:, None], axis=1)
    better_b = (scores_bxC > own_b + tolerance).sum(axis=1)
    tied_b = (scores_bxC >= own_b - tolerance).sum(axis=1) - better_b - 1
    return expected_hits(better_b, tied_b, np.ones_like(tied_b), ks)


def _accuracies(hits_NxK: np.ndarray, labels_N: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    count_C = np.bincount(labels_N)
    sum_C = np.bincount(labels_N, weights=hits_NxK[:, 0])
    present = count_C > 0
    metrics = _named("acc", ks, hits_NxK.mean(axis=0))
    metrics["mean_per_class"] = float((sum_C[present] / count_C[present]).mean())
    return metrics


def _score_blocks(
    query_NxD: np.ndarray, gallery_MxD: np.ndarray, block_rows: int | None
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yields (first row, float64 scores [b, M], difference below which two scores are tied)."""
    query_NxD, gallery_MxD = np.asarray(query_NxD), np.asarray(gallery_MxD, dtype=np.float64)
    if query_NxD.ndim != 2 or gallery_MxD.ndim != 2 or query_NxD.shape[1] != gallery_MxD.shape[1]:
        raise ValueError(f"embeddings do not fit: {query_NxD.shape} and {gallery_MxD.shape}")
    if not len(query_NxD) or not len(gallery_MxD):
        raise ValueError("there are no queries or no gallery")
    _check_finite(query_NxD, gallery_MxD)
    rows = block_rows or max(1, _BLOCK_ENTRIES // len(gallery_MxD))
    gallery_norm = float(np.linalg.norm(gallery_MxD, axis=1).max())
    query_norm = float(np.linalg.norm(query_NxD.astype(np.float64), axis=1).max())
    tolerance = _TIE * gallery_norm * query_norm
    for start in range(0, len(query_NxD), rows):
        block_bxD = query_NxD[start : start + rows].astype(np.float64)
        yield start, block_bxD @ gallery_MxD.T, tolerance


def _check_finite(*embeddings: np.ndarray) -> None:
    if not all(np.isfinite(x).all() for x in embeddings):
        raise UserError(
            "The embeddings are not all finite: the model has diverged; use an earlier checkpoint."
        )


def _check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or any(int(k) != k or k < 1 for k in ks):
        raise ValueError(f"ks must be positive integers, got {ks!r}")
    return tuple(int(k) for k in ks)


def _check_labels(labels_N: np.ndarray, rows: int, classes: int) -> None:
    if rows == 0 or labels_N.shape != (rows,):
        raise ValueError(f"labels have shape {labels_N.shape} for {rows} rows")
    if labels_N.min() < 0 or labels_N.max() >= classes:
        raise ValueError(f"a label is outside [0, {classes})")


def _named(prefix: str, ks: Sequence[int], values: np.ndarray) -> dict[str, float]:
    return {f"{prefix}@{k}": float(value) for k, value in zip(ks, values, strict=True)}
