"""Raw texts that are exchanged between scenes, the captions of a sample, and the evaluator that looks for them."""

import pickle
from typing import ClassVar

import numpy as np
import pytest

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError
from experiments.alip.evals import ExchangedPairs, area_under_curve
from experiments.alip.features import Fields
from experiments.alip.losses import MEANS
from experiments.alip.sources import RawAndSynthetic, keywords_of

SCENES = {
    "kind": "scenes",
    "length": 30,
    "size": 40,
    "objects": (1, 2),
    "scale": (0.4, 0.6),
    "backgrounds": "plain",
    "names_only": True,
}


@pytest.fixture(scope="module")
def records():
    """Share -> the records."""
    sources = {share: RawAndSynthetic(SCENES, share, seed=3) for share in (0.0, 0.3)}
    return {share: [s[i] for i in range(len(s))] for share, s in sources.items()}


def test_a_raw_text_is_a_keyword_of_an_object(records):
    for record in records[0.0]:
        assert not record["exchanged"]
        assert record["raw"] in record["keywords"]
        assert record["synthetic"] == ", ".join(record["names"])
        assert set(record["keywords"]) == {w for c in record["concepts"] for w in keywords_of()[c]}


def test_exchanged_texts_are_those_of_the_same_scenes(records):
    clean, noisy = ([r["raw"] for r in records[share]] for share in (0.0, 0.3))
    assert sorted(clean) == sorted(noisy)
    differ = [i for i, pair in enumerate(zip(clean, noisy, strict=True)) if len(set(pair)) > 1]
    marked = [i for i, r in enumerate(records[0.3]) if r["exchanged"]]
    assert 5 <= len(marked) <= 9 == round(0.3 * 30)
    assert set(marked) <= set(differ)
    for record in records[0.3]:
        assert record["exchanged"] == (record["raw"] not in record["keywords"])


def test_a_record_is_a_function_of_seed_and_index(records):
    source = pickle.loads(pickle.dumps(RawAndSynthetic(SCENES, 0.3, seed=3)))
    for index in (17, 4, 29):
        assert source[index]["raw"] == records[0.3][index]["raw"]
    other = RawAndSynthetic(SCENES, 0.3, seed=4)
    assert any(other[i]["raw"] != records[0.3][i]["raw"] for i in range(6))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match="from 0 to 1"):
        RawAndSynthetic(SCENES, share)


def test_concepts_without_keywords_are_called_by_name():
    assert all(keywords_of().values())
    assert len(keywords_of()) == 857


def test_captions_by_field():
    policy, rng = Fields(), np.random.default_rng(0)
    record = {"raw": "ball", "synthetic": ["tennis, yarn", "yarn"], "text": ["no"]}
    assert policy.count == 2
    assert policy(record, rng) == ["ball", "tennis, yarn"]
    assert Fields("raw")(record, rng) == ["ball"]
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn
    with pytest.raises(BadRecord, match="text is empty"):
        policy({"raw": " ", "synthetic": "yarn"}, rng)


def test_area_under_curve_counts_ties_half():
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 6, 40), rng.integers(2, 9, 30)
    pairs = [(a < b) + (a == b) / 2 for a in low for b in high]
    assert area_under_curve(low, high) == pytest.approx(sum(pairs) / len(pairs))


class Table:
    """Texts by name; an image by its number."""

    vectors: ClassVar = dict(zip("abc", np.eye(3, dtype=np.float32), strict=True))

    def texts(self, params, texts):
        return np.stack([self.vectors[text] for text in texts])

    def images(self, params, images):
        return np.stack([self.vectors["abc"[image]] for image in images])


def test_the_evaluator_weighs_as_the_loss_does():
    fields = ("image", "raw", "synthetic", "exchanged")
    rows = [(0, "a", "a", False), (1, "b", "b", False), (2, "a", "c", True), (1, "a", "c", False)]
    source = [dict(zip(fields, row, strict=True)) for row in rows]
    params = dict(zip(MEANS, (0.5, 0.25, 0.4), strict=True))
    evaluator = ExchangedPairs("pairs", source, Table(), chunk=3)
    found = evaluator.run(params)
    noisy = np.exp(2 * (0 - 0.5) + 2 * (0 - 0.25))
    assert found["weight_exchanged"] == pytest.approx(noisy)
    assert found["weight_clean"] == pytest.approx((2 + noisy) / 3)
    assert found["auc"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert evaluator.protocol["exchanged"] == 1
    without = ExchangedPairs("pairs", source[:2], Table())
    with pytest.raises(UserError, match="clean and exchanged"):
        without.run(params)
