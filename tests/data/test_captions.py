"""Which texts a sample gets: LaCLIP's, VeCLIP's and DreamLIP's choices, templates, and what is refused."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipjax.data.bad import BadRecord
from clipjax.data.captions import KINDS, make_captions, split
from clipjax.errors import UserError


def policy(kind, **settings):
    return make_captions({"kind": kind, **settings})


def draws(chosen, record, count=10_000):
    """All texts of so many samples."""
    return [chosen(record, np.random.default_rng((7, i))) for i in range(count)]


def shares(texts):
    return {t: n / len(texts) for t, n in Counter(t for (t,) in texts).items()}


# LaCLIP: the original and its rewrites, each as likely


def test_each_text_is_as_likely():
    texts = ["original", *(f"rewrite {i}" for i in range(4))]
    found = shares(draws(policy("any", min_words=1), {"text": texts}))
    assert found == pytest.approx(dict.fromkeys(texts, 0.2), abs=0.02)


def test_without_rewrites_nothing_changes():
    assert set(shares(draws(policy("any", min_words=2), {"text": ["a"]}, 50))) == {"a"}


def test_a_rewrite_of_one_word_gives_way_to_the_original():
    found = shares(
        draws(policy("any", min_words=2), {"text": ["the original", "Sure.", "two words"]})
    )
    assert found == pytest.approx({"the original": 2 / 3, "two words": 1 / 3}, abs=0.02)


# VeCLIP: alt-text or fused caption


@pytest.mark.parametrize("p", [0.0, 0.5, 0.8, 1.0])
def test_alt_text_by_its_probability(p):
    chosen = policy("choice", fields={"alt": p, "fused": 1 - p})
    found = shares(draws(chosen, {"alt": "a", "fused": ["f"]}))
    assert found.get("a", 0) == pytest.approx(p, abs=0.02)


def test_choices_are_independent_across_samples():
    found = [
        t == "a" for (t,) in draws(policy("choice", fields={"a": 1, "f": 1}), {"a": "a", "f": "f"})
    ]
    same = np.mean(np.array(found[:-1]) == np.array(found[1:]))
    assert same == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("fused", ["", None, "I'm sorry, but I cannot see the image.", "Sure", []])
def test_a_refusal_never_reaches_the_tokenizer(fused):
    chosen = policy(
        "choice", fields={"alt": 0.2, "fused": 0.8}, refusals=(r"\bsorry\b",), min_words=2
    )
    assert set(shares(draws(chosen, {"alt": "a red car", "fused": fused}, 200))) == {"a red car"}
    with pytest.raises(BadRecord, match="text is empty"):
        chosen({"alt": " ", "fused": fused}, np.random.default_rng(0))


# DreamLIP: the raw caption and sentences of long ones


def test_sub_captions():
    record = {
        "text": ["raw one", "raw two"],
        "short": "A dog.",
        "long": ["A dog runs. It is 3.5 m long.\nThe sky is blue.", "One more</s>and another."],
    }
    chosen = policy("sub_captions", samples=4, long=("short", "long"))
    assert chosen.count == 5
    pool = ["A dog", "A dog runs", "It is 3.5 m long", "The sky is blue", "One more", "and another"]
    seen = Counter()
    for raw, *subs in draws(chosen, record, 3000):
        assert raw == "raw one"
        assert len(set(subs)) == 4
        seen.update(subs)
    assert seen.keys() == set(pool)
    # Also the last one: the published code never draws it.
    assert {k: n / 3000 for k, n in seen.items()} == pytest.approx(
        dict.fromkeys(pool, 4 / 6), abs=0.04
    )


def test_too_few_sentences_come_again():
    chosen = policy("sub_captions", samples=4)
    raw, *subs = chosen({"text": ["raw"], "long": "One. Two."}, np.random.default_rng(1))
    assert raw == "raw"
    assert set(subs) == {"One", "Two"}
    assert len(subs) == 4
    assert chosen({"text": ["raw"]}, np.random.default_rng(1)) == ["raw"] * 5
    assert set(chosen({"long": "One. Two."}, np.random.default_rng(1))) <= {"One", "Two"}
    with pytest.raises(BadRecord, match="text is empty"):
        chosen({"text": [" "], "long": "."}, np.random.default_rng(1))


def test_merged_sentences():
    chosen = policy("sub_captions", samples=2, merged=2)
    found = {t for texts in draws(chosen, {"text": ["r"], "long": "A. B. C."}, 50) for t in texts}
    assert found == {"r", "A. B", "B. C"}


def test_none_is_clip():
    chosen = policy("sub_captions", samples=0)
    assert chosen.count == 1
    assert chosen({"text": ["raw"], "long": "A. B."}, np.random.default_rng(0)) == ["raw"]


@given(st.text())
def test_splitting_keeps_all_but_space_and_stops(text):
    parts = split(text)
    assert all(p and p == p.strip() for p in parts)
    kept = "".join("".join(parts).split()).replace(".", "")
    assert kept == "".join(text.replace("</s>", "").split()).replace(".", "")


# The others


def test_several_are_different_while_there_are_enough():
    chosen = policy("several", count=3)
    record = {"text": list("abcde")}
    assert all(len(set(texts)) == 3 for texts in draws(chosen, record, 100))
    assert Counter(t for texts in draws(chosen, record, 5000) for t in texts)["e"] == pytest.approx(
        3000, abs=150
    )
    assert sorted(chosen({"text": ["a", " ", "b"]}, np.random.default_rng(3)))[0] == "a"
    assert len(chosen({"text": ["a"]}, np.random.default_rng(3))) == 3


def test_template():
    chosen = policy("template", templates=("a photo of a {}", "art of {}"), field="label")
    found = shares(draws(chosen, {"label": "cat"}, 500))
    assert set(found) == {"a photo of a cat", "art of cat"}
    assert policy("template", templates="{}", field="label")(
        {"label": "{}"}, np.random.default_rng(0)
    ) == ["{}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("record", [{}, {"text": []}, {"text": ["", " \n"]}, {"text": None}])
def test_nothing_to_say(kind, record):
    settings = {
        "choice": {"fields": {"text": 1.0}},
        "several": {"count": 2},
        "template": {"templates": "{}"},
    }
    with pytest.raises(BadRecord, match="text is empty"):
        policy(kind, **settings.get(kind, {}))(record, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "choise"}, "did you mean 'choice'"),
        ({"kind": "any", "min_word": 2}, "did you mean 'min_words'"),
        ({"kind": "choice", "fields": {}}, "needs fields with probabilities"),
        ({"kind": "choice", "fields": {"a": -1, "b": 2}}, "needs fields with probabilities"),
        (
            {"kind": "choice", "fields": {"a": 1}, "refusals": ("(",)},
            "not a valid regular expression",
        ),
        ({"kind": "several", "count": 0}, "at least 1 for 'count'"),
        ({"kind": "sub_captions", "samples": -1}, "at least 0 for 'samples'"),
        ({"kind": "template", "templates": ("a", "b {}")}, "must have one {}"),
        ({"kind": "template", "templates": ()}, "at least one template"),
        ({}, "needs a 'kind'"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        make_captions(settings)
