"""Hard negatives with an encoder whose embeddings are planted."""

import json

import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.evals.metrics import pair_hits
from clipjax.evals.regions.hard_negatives import HardNegatives
from tests.evals.planted import WORDS, Planted, Same


def captioned(word, negatives, **more):
    image = np.full((4, 4, 3), WORDS.index(word), np.uint8)
    return {"image": image, "text": [f"a {word}"], "hard_negatives": negatives, **more}


def test_hard_negatives_by_kind_and_ties_count_half():
    records = [
        captioned("cat", ["a dog", "the cat"], negative_kinds=["object", "size"]),
        captioned("cup", [], negative_kinds=[]),
        captioned("hat", ["a car"], negative_kinds=["object"]),
    ]
    texts = np.eye(8, dtype=np.float32)
    texts[WORDS.index("car")] = texts[WORDS.index("hat")]  # nothing tells them apart
    evaluator = HardNegatives("h", records, Planted(texts), chunk=1)
    found = evaluator.run(None)
    # dog: right; "the cat" is the cat itself: a half; the car a half.
    wanted = {"accuracy": 2 / 3, "accuracy/object": 0.75, "accuracy/size": 0.5}
    assert found == pytest.approx(wanted)
    assert evaluator.protocol["pairs_by_kind"] == {"object": 2, "size": 1}
    assert (evaluator.protocol["images"], evaluator.protocol["pairs"]) == (2, 3)
    json.dumps(evaluator.protocol)
    assert HardNegatives("h", records, Planted(texts)).run(None) == found
    constant = HardNegatives("h", records, Same())
    assert constant.run(None) == dict.fromkeys(wanted, 0.5) == constant.protocol["chance"]


def test_hard_negatives_know_which_caption_they_are_of():
    record = captioned("cat", ["a dog"]) | {"text": ["a bee", "a cat"], "negative_of": [1]}
    assert HardNegatives("h", [record], Planted()).run(None) == {"accuracy": 1}
    assert HardNegatives("h", [record | {"negative_of": [0]}], Planted()).run(None) == {
        "accuracy": 0.5
    }
    two = captioned("cat", ["a dog"]) | {"text": ["a bee", "a cat"]}
    for change, message in (
        ({}, "2 right captions and no 'negative_of'"),
        ({"negative_of": [2]}, "is none of its captions"),
        ({"negative_of": [0, 1]}, "1 wrong captions, 1 kinds and 2 places"),
        ({"hard_negatives": []}, "has anything in 'hard_negatives'"),
    ):
        with pytest.raises(UserError, match=message):
            HardNegatives("h", [two | change], Planted()).run(None)
    one = captioned("cat", "a dog", negative_kinds="object", negative_of=0)
    assert HardNegatives("h", [one], Planted()).run(None) == {"accuracy": 1, "accuracy/object": 1}
    none = captioned("cat", None, negative_kinds=None, negative_of=None)
    assert HardNegatives("h", [none, one], Planted()).run(None)["accuracy"] == 1
    for change, message in (
        ({"negative_kinds": [3]}, "'negative_kinds' neither a string nor a list"),
        ({"hard_negatives": [None]}, "'hard_negatives' neither a string nor a list"),
        ({"negative_of": ["first"]}, "is none of its captions"),
    ):
        with pytest.raises(UserError, match=message):
            HardNegatives("h", [one | change], Planted())
    with pytest.raises(UserError, match="no field 'image'"):
        HardNegatives("h", [{k: v for k, v in one.items() if k != "image"}], Planted())
    with pytest.raises(UserError, match="no field 'hard_negatives'"):
        HardNegatives("h", [{"image": record["image"], "text": "a cat"}], Planted())


def test_pair_hits_are_comparisons():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 40, 5)).astype(np.float32)
    c[:5] = b[:5]
    found = pair_hits(a, b, c)
    for x, y, z, hit in zip(*(m.astype(np.longdouble) for m in (a, b, c)), found, strict=True):
        assert hit == (0.5 if (y == z).all() else float((x * y).sum() > (x * z).sum()))
    with pytest.raises(UserError, match="diverged"):
        pair_hits(a, b, np.full_like(c, np.nan))
