"""Rankings against all orders, one by one; evaluators against the same by loops."""

import itertools

import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.evals import make_evaluator, zero_shot
from experiments.cross_the_gap.evals import Gap, ImageRetrieval, TextRetrieval, ZeroShot
from experiments.cross_the_gap.ranking import ranking_metrics
from tests.experiments.cross_the_gap import tiny

WORDS = ("cat", "dog", "kite", "boat", "tree", "lamp", "fish", "star")
STEPS = {"steps": (0, 2)}


def by_hand(relevant):
    """Metrics of one order, float64."""
    places = [i for i, right in enumerate(relevant, 1) if right]
    precision = [sum(relevant[:i]) / i for i in places]
    r = len(places)
    cut = [p for p, i in zip(precision, places, strict=True) if i <= r]
    found = {"mAP": sum(precision) / r, "mAP@R": sum(cut) / r, "P@R": sum(relevant[:r]) / r}
    return found | {"R@1": float(relevant[0])}


def average(found):
    return {name: np.mean([f[name] for f in found]) for name in found[0]}


@pytest.mark.parametrize("levels", [1, 2, 3, 100])
def test_equal_scores_are_in_random_order(levels):
    rng = np.random.default_rng(levels)
    for _ in range(3):
        scores, relevant = rng.integers(levels, size=6) / 7.0, rng.random(6) < 0.5
        relevant[rng.integers(6)] = True
        orders = [
            o for o in itertools.permutations(range(6)) if np.all(np.diff(scores[list(o)]) <= 0)
        ]
        want = average([by_hand(relevant[list(o)].tolist()) for o in orders])
        assert ranking_metrics(scores, relevant) == pytest.approx(want, abs=1e-12)


def records():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    every = zip(WORDS, images, strict=True)
    found = [
        dict(image=x, text=[word, f"a {word}"], label=i // 2) for i, (word, x) in enumerate(every)
    ]
    for i, record in enumerate(found):
        record |= {"easy": [(i + 1) % 8], "hard": [(i + 2) % 8], "junk": [i, (i + 3) % 8]}
    return found


def expected(query, gallery, relevant, counts):
    """mAP and the others of native features, query by query; `relevant` and `counts` are functions of two places."""
    found = []
    for i, q in enumerate(query):
        places = [j for j in range(len(gallery)) if counts(i, j)]
        order = sorted(places, key=lambda j: -float(q.astype(float) @ gallery[j].astype(float)))
        found.append(by_hand([relevant(i, j) for j in order]))
    return average(found)


def native(found):
    return {name: found[f"native/{name}"] for name in ("mAP", "mAP@R", "P@R", "R@1")}


def test_image_retrieval_with_the_query_left_out():
    encoder, params, some = tiny.encoder(), tiny.params(), records()
    evaluator = ImageRetrieval("e", encoder, some, inversion=STEPS)
    found = evaluator.run(params)
    image = encoder.images(params, [r["image"] for r in some])
    want = expected(image, image, lambda i, j: i // 2 == j // 2, lambda i, j: i != j)
    assert native(found) == pytest.approx(want)
    assert evaluator.protocol["queries"] == evaluator.protocol["gallery"] == 8
    assert evaluator.protocol["chance"]["oti_2/R@1"] == pytest.approx(1 / 7)
    assert found["oti_2/gain"] == pytest.approx(found["oti_2/mAP"] - found["native/mAP"])
    assert found["oti_2/cosine"] > found["oti_0/cosine"]
    assert found["native/gap"] < 1e-6 < found["oti_0/gap"]


def test_lists_of_relevant_and_ignored_records():
    encoder, params, some = tiny.encoder(), tiny.params(), records()
    both = {"queries": some, "gallery": some}
    fields = dict(relevant=("easy", "hard"), ignored=("junk",), inversion=STEPS)
    found = ImageRetrieval("e", encoder, sources=both, **fields).run(params)
    image = encoder.images(params, [r["image"] for r in some])
    right = lambda i, j: (j - i) % 8 in (1, 2)  # noqa: E731
    want = expected(image, image, right, lambda i, j: (j - i) % 8 not in (0, 3))
    assert native(found) == pytest.approx(want)


def test_captions_of_the_same_image():
    encoder, params, some = tiny.encoder(), tiny.params(), records()
    evaluator = TextRetrieval("e", encoder, some, label_field=None, inversion=STEPS)
    found = evaluator.run(params)
    text = encoder.texts(params, [t for r in some for t in r["text"]])
    want = expected(text, text, lambda i, j: i // 2 == j // 2, lambda i, j: i != j)
    assert native(found) == pytest.approx(want)
    assert found["ovi_2/cosine"] > found["ovi_0/cosine"]


def test_queries_without_an_answer_are_counted():
    some = records()
    some[7]["label"] = 9
    evaluator = ImageRetrieval("e", tiny.encoder(), some, inversion=STEPS)
    evaluator.run(tiny.params())
    assert evaluator.protocol["queries_without_relevant"] == 2
    few = ImageRetrieval("e", tiny.encoder(), some, inversion=STEPS, count=1)
    few.run(tiny.params())
    assert few.protocol["queries"] == 1
    for i, record in enumerate(some):
        record["label"] = i
    with pytest.raises(UserError, match="No query of evaluator 'e' has a relevant entry"):
        evaluator.run(tiny.params())


def test_zero_shot_and_gap():
    encoder, params, some = tiny.encoder(), tiny.params(), records()
    how = {"classes": WORDS[:4], "templates": ("a {}", "{}")}
    evaluator = ZeroShot("e", encoder, some, oti=STEPS, ovi=STEPS, **how)
    found = evaluator.run(params)
    want = zero_shot.ZeroShot("e", some, encoder, **how).run(params)
    assert {name: found[f"native/{name}"] for name in want} == want
    assert {"oti_2/acc@1", "ovi_0/gain"} < set(found)
    gap = Gap("e", encoder, some).run(params)["gap"]
    image = encoder.images(params, [r["image"] for r in some]).astype(float)
    text = encoder.texts(params, [t for r in some for t in r["text"]]).astype(float)
    assert gap == pytest.approx(np.sqrt(np.sum((image.mean(0) - text.mean(0)) ** 2)), rel=1e-6)


def test_mistakes():
    entry = {"kind": "experiments.cross_the_gap.evals:ImageRetrieval"}
    source = {"kind": "drawings", "split": "unseen", "styles": ("fluent_3d",)}
    for given, message in (
        ({}, "'e' needs a source, or sources queries, gallery"),
        ({"sources": {"gallery": source}}, "'e' needs a source, or sources queries, gallery"),
        ({"source": source, "inversion": {"stesp": 3}}, "no setting 'stesp' .did you mean 'steps'"),
    ):
        with pytest.raises(UserError, match=message):
            make_evaluator("e", entry | given, tiny.encoder())
    with pytest.raises(UserError, match="Record 0 of evaluator 'e' has no field 'label'"):
        make_evaluator("e", entry | {"source": source}, tiny.encoder()).run(tiny.params())
