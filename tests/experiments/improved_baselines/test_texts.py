"""The caption policy: stop words, the three changes and their frequencies, the bundled synonyms."""

import collections

import numpy as np
import pytest

from clipjax.data.drawings import Drawings
from clipjax.errors import UserError
from experiments.improved_baselines.features import STOP_WORDS, WeakAndStrong, read_synonyms

ANY = {"kind": "any"}


def rng(seed=0):
    return np.random.default_rng(seed)


def test_one_weak_text_and_two_strong_ones():
    policy = WeakAndStrong(ANY, stop_words=1.0, operations=(0, 1, 0))
    weak, *strong = policy({"text": ["A photo of the red dog, and a cat"]}, rng())
    assert policy.count == 3
    assert weak == "photo red dog , cat"
    assert len(strong) == 2
    assert all(text != weak for text in strong)


def test_an_empty_result_falls_back():
    policy = WeakAndStrong(ANY, stop_words=1.0, operations=(0, 0, 1))
    assert policy({"text": ["to be or not to be"]}, rng())[0] == "to be or not to be"
    for seed in range(20):
        assert all(policy({"text": ["cat"]}, rng(seed)))


def test_frequencies_of_the_operations():
    counts = collections.Counter()

    class Counting(WeakAndStrong):
        def synonym(self, words, rng):
            counts["synonym"] += 1
            return words

        def swap(self, words, rng):
            counts["swap"] += 1
            return words

        def delete(self, words, rng):
            counts["delete"] += 1
            return words

    policy, generator, texts = Counting(ANY), rng(), 6000
    for _ in range(texts // 2):
        policy({"text": ["red dog"]}, generator)
    assert sum(counts.values()) == texts  # exactly one each
    for name, share in {"synonym": 0.4, "swap": 0.4, "delete": 0.2}.items():
        assert abs(counts[name] / texts - share) < 4 * (share * (1 - share) / texts) ** 0.5


def test_stop_words_go_with_their_probability():
    policy, generator = WeakAndStrong(ANY, strong=0), rng()
    gone = [policy({"text": ["a dog"]}, generator) == ["dog"] for _ in range(3000)]
    assert abs(np.mean(gone) - 0.8) < 0.03
    assert len(STOP_WORDS) == 179
    assert {"the", "won't", "ours"} <= STOP_WORDS


def test_what_the_operations_do():
    policy = WeakAndStrong(ANY)
    table = read_synonyms(str(policy._synonyms))
    new = policy.synonym(["the", "dog", "Dog", "zzz", "dog"], rng())
    assert new[0] == "the"
    assert new[3] == "zzz"
    changed = [
        i
        for i, (a, b) in enumerate(zip(new, ["the", "dog", "Dog", "zzz", "dog"], strict=True))
        if a != b
    ]
    assert changed in ([1, 4], [2])  # all places of one word
    assert all(new[i] in table["dog"] for i in changed)
    assert policy.synonym(["zzz"], rng()) == ["zzz"]
    assert sorted(policy.swap(list("abc"), rng())) == list("abc") != policy.swap(list("abc"), rng())
    assert policy.swap(["a"], rng()) == ["a"]
    kept = [len(policy.delete(["w"] * 10, rng(seed))) for seed in range(2000)]
    assert abs(np.mean(kept) - 9.0) < 0.1
    assert min(len(policy.delete(["w"], rng(seed))) for seed in range(100)) == 1


def test_several_texts_are_draws_of_their_own():
    record = {"text": ["red dog", "blue cat"]}
    one, each = (
        WeakAndStrong(ANY, stop_words=0, operations=(0, 0, 1), several=s) for s in (False, True)
    )
    nouns = lambda policy, seed: {t.split()[-1] for t in policy(record, rng(seed))} & {"dog", "cat"}  # noqa: E731
    assert max(len(nouns(one, seed)) for seed in range(30)) == 1
    assert max(len(nouns(each, seed)) for seed in range(30)) == 2


def test_cleaning_is_in_lower_case():
    policy = WeakAndStrong(ANY, strong=0, stop_words=0.0, clean=True)
    assert policy({"text": ["Red  &amp; BLUE"]}, rng()) == ["red & blue"]


def test_synonyms_are_those_of_the_drawings_words():
    table = read_synonyms(WeakAndStrong(ANY)._synonyms)
    assert "motorcar" in table["car"]
    assert all(word not in others for word, others in table.items())
    names = {w for r in Drawings("all", group="concept") for w in r["name"].lower().split()}
    assert len(names & table.keys()) > 0.6 * len(names)


def test_refused():
    with pytest.raises(UserError, match="draws one text"):
        WeakAndStrong({"kind": "several", "count": 2})
    policy = WeakAndStrong(ANY, synonyms="nowhere.tsv", operations=(1, 0, 0))
    with pytest.raises(UserError, match=r"no file of synonyms 'nowhere.tsv'"):
        policy({"text": ["red dog"]}, rng())
