"""Average precision and its kin, of one query."""

import numpy as np


def ranking_metrics(score_M: np.ndarray, relevant_M: np.ndarray) -> dict[str, float]:
    """`mAP`, `mAP@R`, `P@R` and `R@1` of one query, R of whose M entries (at least one) are relevant.

    Scores that agree to nine digits are in random order, and the mean over all orders is given (McSherry & Najork
    2008); so equal scores throughout give the level of chance.
    """
    _, group_M, size_G = np.unique(-np.round(score_M, 9), return_inverse=True, return_counts=True)
    right_G = np.bincount(group_M, relevant_M)
    before_G, first_G = np.cumsum(right_G) - right_G, np.cumsum(size_G) - size_G
    rank_M = np.arange(1, len(score_M) + 1)
    hit_M = np.repeat(right_G / size_G, size_G)  # chance of a relevant entry at this rank
    # Of the relevant ones up to a relevant one at this rank: those before the group, its share of the group's, itself.
    others_M = np.repeat((right_G - 1) / np.maximum(size_G - 1, 1), size_G)
    within_M = (rank_M - 1 - np.repeat(first_G, size_G)) * others_M
    gain_M = hit_M * (np.repeat(before_G, size_G) + within_M + 1) / rank_M
    count = int(relevant_M.sum())
    found = {"mAP": gain_M.sum() / count, "mAP@R": gain_M[:count].sum() / count}
    return found | {"P@R": hit_M[:count].mean(), "R@1": hit_M[0]}
