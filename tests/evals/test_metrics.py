"""Metrics against slow oracles that enumerate orders one by one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.errors import UserError
from clipjax.evals import metrics


def slow_hit(scores, right, k):
    """Expected hit of one query: the mean over every order of the gallery that sorts the scores."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return sum(any(i in right for i in order[:k]) for order in orders) / len(orders)


def unit(rng, n, d):
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    queries=st.integers(1, 4),
    gallery=st.integers(1, 5),
    block_rows=st.sampled_from([None, 1, 2]),
)
def test_retrieval_recall_equals_enumerated_orders(data, queries, gallery, block_rows):
    # Scores are planted: the gallery is the identity, so a query's coordinates are its scores.
    scores = np.array(
        data.draw(
            st.lists(st.integers(0, 2), min_size=queries * gallery, max_size=queries * gallery)
        ),
        dtype=np.float32,
    ).reshape(queries, gallery)
    positives = [
        data.draw(st.lists(st.integers(0, gallery - 1), min_size=1, max_size=gallery + 1))
        for _ in range(queries)
    ]
    ks = (1, 2, 4)
    got = metrics.retrieval_recall(
        scores, np.eye(gallery, dtype=np.float32), positives, ks, block_rows=block_rows
    )
    for k in ks:
        want = np.mean([slow_hit(s, set(p), k) for s, p in zip(scores, positives, strict=True)])
        assert got[f"R@{k}"] == pytest.approx(want, abs=1e-12)


def test_recall_of_distinct_scores_is_the_plain_one():
    rng = np.random.default_rng(0)
    query, gallery = unit(rng, 40, 8), unit(rng, 60, 8)
    positives = rng.integers(0, 60, size=(40, 3))
    order = np.argsort(-(query @ gallery.T), axis=1)
    got = metrics.retrieval_recall(query, gallery, positives)
    for k in (1, 5, 10):
        want = np.mean([bool(set(o[:k]) & set(p)) for o, p in zip(order, positives, strict=True)])
        assert got[f"R@{k}"] == pytest.approx(want)


@pytest.mark.parametrize("gallery", [7, 50])
def test_a_collapsed_model_gets_exactly_chance(gallery):
    rng = np.random.default_rng(1)
    # One vector everywhere: equal scores, though sums of a matrix product may round differently.
    same = np.repeat(unit(rng, 1, 33), gallery, axis=0)
    got = metrics.retrieval_recall(same, same, np.arange(gallery), (1, 5))
    assert got["R@1"] == pytest.approx(1 / gallery)
    assert got["R@5"] == pytest.approx(5 / gallery)
    assert got == pytest.approx(
        metrics.chance_recall(np.arange(gallery), gallery, gallery, (1, 5)), abs=1e-12
    )
    labels = np.arange(gallery)
    for result in (
        metrics.classification_metrics(np.zeros((gallery, gallery)), labels),
        metrics.nearest_class_metrics(same, same, labels, block_rows=3),
    ):
        assert result["acc@1"] == pytest.approx(1 / gallery)
        assert result["mean_per_class"] == pytest.approx(1 / gallery)
        assert result["acc@5"] == pytest.approx(5 / gallery)


def test_scores_that_differ_by_rounding_alone_are_tied():
    rng = np.random.default_rng(3)
    values = rng.normal(size=33)
    gallery = np.stack([rng.permutation(values) for _ in range(40)])  # one sum in many orders
    query = np.ones((40, 33))
    scores = query[0] @ gallery.T
    lucky = np.full(40, scores.argmax())  # rounding alone would make this one the best
    assert scores[lucky[0]] > scores.min()
    assert metrics.retrieval_recall(query, gallery, lucky)["R@1"] == pytest.approx(1 / 40)
    result = metrics.nearest_class_metrics(query, gallery, lucky)
    assert result["acc@1"] == pytest.approx(1 / 40)
    gallery[7] += 1e-7  # a real difference still counts, however small it would be in float32
    assert metrics.retrieval_recall(query[:1], gallery, [7])["R@1"] == 1


def test_chance_with_many_positives_is_hypergeometric():
    got = metrics.chance_recall([[0, 1, 2]], 1, 20, (1, 5))
    assert got["R@1"] == pytest.approx(3 / 20)
    assert got["R@5"] == pytest.approx(1 - math.comb(17, 5) / math.comb(20, 5))


def test_groups_equal_index_lists_and_any_block_size():
    rng = np.random.default_rng(2)
    query, gallery = unit(rng, 31, 6), unit(rng, 45, 6)
    query_ids, gallery_ids = (
        rng.integers(0, 9, 31),
        np.concatenate([np.arange(9), rng.integers(0, 9, 36)]),
    )
    lists = [np.flatnonzero(gallery_ids == g) for g in query_ids]
    want = metrics.retrieval_recall(query, gallery, lists)
    assert 0 < want["R@1"] < want["R@5"] < 1
    for ids in ((query_ids, gallery_ids), (query_ids.astype(str), gallery_ids.astype(str))):
        for rows in (1, 4, 31, 100):
            got = metrics.retrieval_recall(query, gallery, metrics.Groups(*ids), block_rows=rows)
            assert got == want


def test_retrieval_recall_refuses_what_cannot_be_right():
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="query 1 has no positive"):
        metrics.retrieval_recall(x, x, [[0], [], [2]])
    with pytest.raises(ValueError, match="group 5"):
        metrics.retrieval_recall(x, x, metrics.Groups([0, 5, 1], [0, 1, 2]))
    with pytest.raises(ValueError, match="outside the gallery"):
        metrics.retrieval_recall(x, x, [0, 1, 3])
    with pytest.raises(ValueError, match="for 2 queries of 3"):
        metrics.retrieval_recall(x, x, [0, 1])
    with pytest.raises(ValueError, match="positive integers"):
        metrics.retrieval_recall(x, x, [0, 1, 2], ks=(0,))
    with pytest.raises(ValueError, match="do not fit"):
        metrics.retrieval_recall(x, x[:, :2], [0, 1, 2])
    with pytest.raises(ValueError, match="no queries"):
        metrics.retrieval_recall(x[:0], x, [])
    with pytest.raises(UserError, match="diverged"):
        metrics.retrieval_recall(x * np.nan, x, [0, 1, 2])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 5), classes=st.integers(2, 6))
def test_classification_equals_enumerated_orders(data, rows, classes):
    count = rows * classes
    logits = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=np.float32
    ).reshape(rows, classes)
    labels = np.array(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    )
    hit = [slow_hit(s, {label}, 1) for s, label in zip(logits, labels, strict=True)]
    by_class = [
        np.mean([h for h, x in zip(hit, labels, strict=True) if x == c]) for c in set(labels)
    ]
    want = {"acc@1": np.mean(hit), "mean_per_class": np.mean(by_class)}
    if classes > 5:
        want["acc@5"] = np.mean(
            [slow_hit(s, {label}, 5) for s, label in zip(logits, labels, strict=True)]
        )
    assert metrics.classification_metrics(logits, labels) == pytest.approx(want, abs=1e-12)
    planted = metrics.nearest_class_metrics(
        logits, np.eye(classes, dtype=np.float32), labels, block_rows=2
    )
    assert planted == pytest.approx(want, abs=1e-12)


def test_mean_per_class_is_not_fooled_by_a_big_class():
    logits = np.tile([1.0, 0.0, 0.0], (10, 1))
    result = metrics.classification_metrics(logits, np.array([0] * 8 + [1, 2]))
    assert result["acc@1"] == pytest.approx(0.8)
    assert result["mean_per_class"] == pytest.approx(1 / 3)
    assert "acc@5" not in result


def test_classification_refuses_bad_labels_and_nan():
    with pytest.raises(ValueError, match="outside"):
        metrics.classification_metrics(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match="shape"):
        metrics.classification_metrics(np.zeros((2, 3)), np.array([0]))
    with pytest.raises(UserError, match="diverged"):
        metrics.classification_metrics(np.full((2, 3), np.nan), np.array([0, 1]))


def test_top_k_is_sorted_and_ties_go_by_index():
    index, score = metrics.top_k(np.array([[0.0, 2.0, 1.0, 2.0]]), np.eye(4), 3)
    assert index.tolist() == [[1, 3, 2]]
    assert score.tolist() == [[2.0, 2.0, 1.0]]
