"""The evaluators: their measures against other ways to compute them, priors and pruning."""

import itertools

import numpy as np
import pytest

from experiments.disambiguated_skipgram.evals import (
    ContextClusters,
    Senses,
    adjusted_rand,
    k_means,
)
from experiments.disambiguated_skipgram.windows import Planted
from tests.experiments.disambiguated_skipgram import toy


def by_pairs(a, b):
    """The index from its definition: over all pairs of items."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same_a, same_b = (np.array([x[i] == x[j] for i, j in pairs], float) for x in (a, b))
    both, mean = (same_a * same_b).sum(), same_a.sum() * same_b.sum() / len(pairs)
    most = (same_a.sum() + same_b.sum()) / 2
    return (both - mean) / (most - mean)


@pytest.mark.parametrize("seed", range(4))
def test_adjusted_rand_is_its_definition(seed):
    a, b = np.random.default_rng(seed).integers([[4], [3]], size=(2, 15))
    assert np.isclose(adjusted_rand(a, b), by_pairs(a, b))
    assert adjusted_rand(a, 3 - a) == 1.0
    assert adjusted_rand(np.zeros(15, int), b) == 0.0


def test_adjusted_rand_is_zero_by_chance():
    rng = np.random.default_rng(0)
    found = [adjusted_rand(*rng.integers(3, size=(2, 30))) for _ in range(2000)]
    assert abs(np.mean(found)) < 5 * np.std(found) / 2000**0.5


def test_k_means_finds_groups():
    rng = np.random.default_rng(0)
    true = rng.permuted(np.repeat([0, 1, 2], 20))
    x = np.array([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]])[true] + rng.normal(size=(60, 2))
    centres = k_means(x, 3, np.random.default_rng(1))
    assert adjusted_rand(((x[:, None] - centres) ** 2).sum(-1).argmin(1), true) == 1.0


@pytest.fixture(scope="module")
def planted():
    """(parameters, encoder, source): word w's senses depend on its biases alone, and sense 1 of word 2 is never it."""
    config = toy.config("train", 3)
    rng = np.random.default_rng(0)
    bias = rng.normal(size=32).astype(np.float32)
    bias[2 * 2 + 1], bias[1 * 2] = -20.0, -20.0  # of word 2, and sense 0 of the pseudo-word
    table = lambda rows: rng.normal(size=(rows, 16)).astype(np.float32)  # noqa: E731
    params = {
        "sense": table(32),
        "output": table(16),
        "output_bias": np.zeros(16, np.float32),
        "disambiguation": np.zeros((32, 16), np.float32),
        "disambiguation_bias": bias,
    }
    return params, toy.encoder(config), Planted(grouped=True)


def test_priors_sum_to_one_and_unknown_is_never_pruned(planted):
    params, encoder, source = planted
    priors = Senses("senses", encoder, source).priors(params)
    assert priors.shape == (16, 2)
    np.testing.assert_allclose(priors.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(priors[0], [0.5, 0.5])
    z = params["disambiguation_bias"].reshape(16, 2)[1:]
    np.testing.assert_allclose(priors[1:], np.exp(z) / np.exp(z).sum(1, keepdims=True), rtol=1e-5)


def test_pruning_removes_a_sense_that_is_never_selected(planted):
    params, encoder, source = planted
    priors = Senses("senses", encoder, source).priors(params)
    assert priors[2, 1] < 0.05 <= priors[2, 0]
    found = Senses("senses", encoder, source).run(params)
    used = (priors[1:] >= 0.05).sum(1)
    assert found["senses"] == used.mean()
    assert found["pseudo_word_senses"] == 1.0


def test_pruned_senses_are_not_found_in_windows(planted):
    params, encoder, source = planted
    # The prior of sense 0 is small, but in sentences with word 3 it would win.
    params = {k: v.copy() for k, v in params.items()}
    params["disambiguation_bias"][2:4] = -30.0, 0.0
    params["disambiguation"][2] = 400 * params["output"][3]
    found = []
    for whole in (True, False):
        evaluator = Senses("senses", encoder, source, whole=whole, prune=0.5)
        evaluator.scores = lambda train, test: found.append((train, test)) or {}
        evaluator.run(params)
    assert (found[0][0] == 0).any()
    assert (found[1][0] == 1).all()
    assert (found[1][1] == 1).all()


def test_accuracy_counts_what_a_sense_mostly_stands_for(planted):
    _, encoder, source = planted
    evaluator = Senses("senses", encoder, source)
    train = source.part[source.train[source.part[source.train] >= 0]]
    test = source.part[source.test]
    assert evaluator.scores(1 - train, 1 - test) == {"ari": 1.0, "accuracy": 1.0}
    more = np.bincount(train).argmax()
    none = evaluator.scores(np.zeros_like(train), np.zeros_like(test))
    assert none == {"ari": 0.0, "accuracy": np.mean(test == more)}
    split = evaluator.scores(train + 2 * (np.arange(len(train)) % 2), test)  # three and four senses
    assert split["accuracy"] == 1.0
    assert evaluator.protocol["chance"]["accuracy"] == np.bincount(train).max() / len(train)


def test_clusters_find_topics_of_untrained_vectors(planted):
    params, encoder, source = planted
    found = ContextClusters("clusters", encoder, source, clusters=2).run(params)
    assert found["accuracy"] > 0.9
    assert found["ari"] > 0.7
