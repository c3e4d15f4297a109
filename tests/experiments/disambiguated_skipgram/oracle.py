"""The losses in float64, a target at a time, with gradients from the textbook formulas."""

import math

import numpy as np


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def expected(classes, count):
    """Chance of each class to be among `count` different ones, by counting draws up instead of halving an interval."""
    if count >= classes:
        return np.ones(classes)
    p = np.array([math.log((i + 2) / (i + 1)) / math.log(classes + 1) for i in range(classes)])
    chance = lambda n: 1 - (1 - p) ** n  # noqa: E731
    n = 0.0
    for step in 10.0 ** np.arange(3, -13, -1):
        while chance(n + step).sum() < count:
            n += step
    return chance(n)


def sampled_softmax(scores, vectors, table, bias, targets, candidates, temperature):
    """(value, gradients by scores, sense vectors, output vectors, output bias)."""
    scores, vectors, table, bias = (
        np.asarray(x, np.float64) for x in (scores, vectors, table, bias)
    )
    chance = expected(len(table), len(candidates))
    d_scores, d_vectors = np.zeros_like(scores), np.zeros_like(vectors)
    d_table, d_bias = np.zeros_like(table), np.zeros_like(bias)
    places = [tuple(place) for place in np.argwhere(np.asarray(targets) >= 0)]
    value = 0.0
    for row, place in places:
        target = int(targets[row, place])
        y = softmax(scores[row, place] / temperature)
        r = sum(weight * sense for weight, sense in zip(y, vectors[row], strict=True))
        classes = [target] + [int(c) for c in candidates if c != target]
        logits = np.array([table[c] @ r + bias[c] - math.log(chance[c]) for c in classes])
        p = softmax(logits)
        value -= math.log(p[0]) / len(places)
        d_r = np.zeros_like(r)
        for i, (c, share) in enumerate(zip(classes, p, strict=True)):
            slope = (share - (i == 0)) / len(places)
            d_r += slope * table[c]
            d_table[c] += slope * r
            d_bias[c] += slope
        d_vectors[row] += np.outer(y, d_r)
        d_y = vectors[row] @ d_r
        d_scores[row, place] = y * (d_y - y @ d_y) / temperature
    return value, (d_scores, d_vectors, d_table, d_bias)


def entropy(logits, targets, temperature):
    """(value, gradient by logits) of the mean entropy, a target at a time."""
    logits = np.asarray(logits, np.float64)
    value, gradient = 0.0, np.zeros_like(logits)
    rows = [row for row, _ in np.argwhere(np.asarray(targets) >= 0)]
    for row in rows:
        p = softmax(logits[row] / temperature)
        value -= sum(x * math.log(x + 1e-5) for x in p) / len(rows)
        d_p = -np.log(p + 1e-5) - p / (p + 1e-5)
        gradient[row] += p * (d_p - p @ d_p) / temperature / len(rows)
    return value, gradient


def distance(got, want):
    """Relative norm of the difference."""
    want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
