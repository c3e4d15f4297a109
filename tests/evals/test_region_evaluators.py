"""Evaluators of regions, with an encoder whose embeddings and boxes are planted."""

import json
import math

import numpy as np
import pytest

from clipjax.data.bad import BadRecord
from clipjax.data.scenes import Scenes
from clipjax.errors import ImageError, UserError
from clipjax.evals import make_evaluators
from clipjax.evals.metrics import box_iou
from clipjax.evals.regions.classification import RegionClassification
from clipjax.evals.regions.grounding import Grounding
from clipjax.evals.regions.hard_negatives import HardNegatives
from clipjax.evals.regions.retrieval import RegionRetrieval
from clipjax.evals.retrieval import Retrieval
from clipjax.evals.zero_shot import ZeroShot
from tests.evals.planted import LEFT, LOW, RIGHT, SIZE, TOP, WORDS, Planted, Same, scene, scenes


def test_a_perfect_model_is_perfect_and_a_constant_one_is_at_chance():
    for kind, keys in (
        (RegionClassification, ["mAcc", "acc@1", "acc@5"]),
        (
            RegionRetrieval,
            [f"{way}/R@{k}" for way in ("region_to_text", "text_to_region") for k in (1, 5, 10)],
        ),
    ):
        evaluator = kind("e", scenes(), Planted())
        assert evaluator.run(None) == dict.fromkeys(keys, 1.0)
        constant = kind("e", scenes(), Same())
        found = constant.run(None)
        assert found == pytest.approx(constant.protocol["chance"])
        assert found[keys[0]] < 0.3
        assert json.loads(json.dumps(constant.protocol)) == constant.protocol
        assert (evaluator.protocol["images"], evaluator.protocol["regions"]) == (3, 9)


def table(seed):
    """Texts that lie near the axes of several words."""
    rng = np.random.default_rng(seed)
    found = np.eye(8) + rng.normal(scale=0.8, size=(8, 8))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_classification_counts_as_a_loop_does(seed):
    texts = table(seed)
    found = RegionClassification("e", scenes(), Planted(texts), chunk=2).run(None)
    by_class, first, fifth = {}, [], []
    names = sorted({name for record in scenes() for name in record["names"]})
    for record in scenes():
        for name in record["names"]:
            scores = {other: texts[WORDS.index(other), WORDS.index(name)] for other in names}
            place = sorted(names, key=lambda n: -scores[n]).index(name)
            by_class.setdefault(name, []).append(place == 0)
            first.append(place == 0)
            fifth.append(place < 5)
    means = [sum(hits) / len(hits) for hits in by_class.values()]
    assert found["mAcc"] == pytest.approx(sum(means) / len(means))
    assert found["acc@1"] == pytest.approx(sum(first) / len(first))
    assert found["acc@5"] == pytest.approx(sum(fifth) / len(fifth))


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_retrieval_counts_as_a_loop_does(merge, seed):
    texts = table(seed)
    # Without equal texts there are no ties, so a rank is a rank.
    records = scenes() if merge else [*scenes()[:1], scene(("cup", TOP), ("hat", LEFT))]
    found = RegionRetrieval("e", records, Planted(texts), merge_duplicates=merge).run(None)
    regions = [WORDS.index(name) for record in records for name in record["names"]]
    distinct = sorted(set(regions))
    hits = {k: [] for k in (1, 5, 10)}
    for region in regions:
        better = sum(texts[t, region] > texts[region, region] for t in distinct)
        for k in hits:
            hits[k].append(better < k)
    for k in hits:
        assert found[f"region_to_text/R@{k}"] == pytest.approx(np.mean(hits[k]))
    for k in (1, 5):
        hit = []
        for text in distinct:
            # Regions of one word are equal: all its copies are right, those of another word come together.
            better = sum(texts[text, r] > texts[text, text] for r in regions)
            hit.append(better < k)
        assert found[f"text_to_region/R@{k}"] == pytest.approx(np.mean(hit))


def test_texts_apart_are_right_for_their_own_region_only():
    records = [scene(("cat", LEFT)), scene(("cat", RIGHT)), scene(("dog", TOP))]
    merged = RegionRetrieval("m", records, Planted())
    assert merged.run(None)["text_to_region/R@1"] == 1
    assert merged.protocol["texts"] == 2
    apart = RegionRetrieval("a", records, Planted(), merge_duplicates=False)
    assert apart.run(None)["text_to_region/R@1"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert apart.protocol["texts"] == 3


def test_what_cannot_be_measured_is_counted():
    class Source(list):
        def __getitem__(self, index):
            if index == 1:
                raise BadRecord("no object fits")
            return super().__getitem__(index)

    hidden = tuple(np.array(TOP) / SIZE)
    records = scenes()
    records[0]["boxes"][1] = np.array([0.5, 0.2, 0.5, 0.9])  # no area
    records[3]["region_text"][0] = [" "]
    evaluator = RegionRetrieval("e", Source(records), Planted(hidden=(hidden,)), chunk=3)
    assert evaluator.run(None)["region_to_text/R@1"] == 1
    counts = {k: evaluator.protocol[k] for k in ("hidden_boxes", "unnamed_regions")}
    assert counts == {"hidden_boxes": 3, "unnamed_regions": 1}
    assert evaluator.protocol["bad_records"] == 1
    assert evaluator.protocol["regions"] == 5
    assert evaluator.run(None)["region_to_text/R@1"] == 1
    assert evaluator.protocol["regions"] == 5  # counted anew


def test_settings_reach_the_encoder():
    encoder = Planted()
    pixels = [dict(record) for record in scenes()]
    for record in pixels:
        boxes = np.array(record["boxes"]).reshape(-1, 4) * SIZE
        boxes[:, 2:] -= boxes[:, :2]
        record["boxes"] = boxes
    settings = {"how": "crop", "box_format": "xywh_pixels", "chunk": 2}
    classes = {"cat": ["cat", "a cat"]} | {name: name for name in WORDS[1:]}
    evaluator = RegionClassification("e", pixels, encoder, classes=classes, **settings)
    assert evaluator.run(None)["mAcc"] == 1
    assert encoder.calls == [(1, "crop"), (2, "crop")]
    assert (evaluator.protocol["how"], evaluator.protocol["classes"]) == ("crop", 7)
    numbers = [dict(r, ids=[WORDS.index(n) for n in r["names"]]) for r in scenes()]
    listed = RegionClassification("e", numbers, Planted(), classes=WORDS, label_field="ids")
    assert listed.run(None)["acc@1"] == 1


def test_records_that_do_not_fit_are_refused_by_name():
    def refused(message, record, kind=RegionRetrieval, **settings):
        with pytest.raises(UserError, match=message):
            kind("mine", [record], Planted(), **settings).run(None)

    good = scene(("cat", LEFT))
    no_boxes = {k: v for k, v in good.items() if k != "boxes"}
    refused("Record 0 of evaluator 'mine' has no field 'boxes'", no_boxes)
    refused("no field 'phrases'", good, text_field="phrases")
    refused("cannot be used: 1 boxes and 2 region_text", good | {"region_text": ["a", "b"]})
    refused("boxes are not", good | {"boxes": [[0, 0, 1]]})
    refused("has several images", good | {"image": [good["image"]]})
    refused("box_format of evaluator 'mine' cannot be 'xyxx'", good, box_format="xyxx")
    refused("No record of evaluator 'mine' has a region", scene())
    refused("Record 0 .* label 'cat', which is none", good, RegionClassification, classes=WORDS[1:])
    refused("such as 3 but no names", good | {"names": [3]}, RegionClassification)
    plain = "cannot be used: names is not a list with one entry a box"
    refused(plain, good | {"names": "cat"}, RegionClassification)
    refused(plain, good | {"names": 3}, RegionClassification, classes=WORDS)
    refused("region_text is not a list", good | {"region_text": "cat"})
    refused("text is neither a string nor a list", good | {"region_text": [3]})
    refused("text is neither a string nor a list", good | {"names": np.array([3])}, Grounding)
    with pytest.raises(UserError, match="source of evaluator 'mine' is empty"):
        RegionRetrieval("mine", [], Planted())


class Refusing(Planted):
    """Cannot do anything with regions."""

    def check_regions(self, how):
        raise UserError(f"no regions with {how}")

    def check_ground(self):
        raise UserError("no boxes of texts")


def test_a_model_that_cannot_is_refused_when_the_evaluator_is_made():
    for kind in (RegionClassification, RegionRetrieval):
        with pytest.raises(UserError, match="no regions with crop"):
            kind("e", scenes(), Refusing(), how="crop")
    with pytest.raises(UserError, match="no boxes of texts"):
        Grounding("e", scenes(), Refusing())


class Broken(Planted):
    """Cannot decode the image that is one number 9."""

    def images(self, params, images):
        for place, image in enumerate(images):
            if (np.asarray(image) == 9).all():
                raise ImageError(f"Image {place} cannot be used", place, "image is truncated")
        return super().images(params, images)

    def regions(self, params, images, boxes, how):
        self.images(params, images)
        return super().regions(params, images, boxes, how)

    def ground(self, params, images, texts):
        self.images(params, images)
        return [np.zeros((len(some), 4), np.float32) for some in texts]


@pytest.mark.parametrize(
    "kind", [RegionClassification, RegionRetrieval, Grounding, HardNegatives, Retrieval, ZeroShot]
)
def test_a_image_or_record_that_cannot_be_used_is_named(kind):
    more = {"text": "cat", "hard_negatives": "a dog", "label": "cat"}
    records = [scene(("cat", LEFT)) | more for _ in range(8)]
    records[5]["image"] = np.full_like(records[5]["image"], 9)
    evaluator = kind("mine", records, Broken(), chunk=3)
    with pytest.raises(UserError, match=r"image of record 5 of evaluator 'mine'.*is truncated"):
        evaluator.run(None)

    class Source(list):
        def __getitem__(self, index):
            if index == 5:
                raise BadRecord("json is broken")
            return super().__getitem__(index)

    evaluator = kind("mine", Source(records), Broken(), chunk=3)
    if kind in (Retrieval, ZeroShot):
        with pytest.raises(UserError, match=r"Record 5 of evaluator 'mine' .*json is broken"):
            evaluator.run(None)
    else:
        evaluator.run(None)
        assert evaluator.protocol["bad_records"] == 1


def test_regions_without_a_label_are_counted():
    records = [scene(("cat", LEFT), ("dog", RIGHT)), scene(("cup", TOP))]
    records[0]["names"][1] = None
    for classes in (None, WORDS):
        evaluator = RegionClassification("e", records, Planted(), classes=classes)
        assert evaluator.run(None)["mAcc"] == 1
        assert evaluator.protocol["unnamed_regions"] == 1


def test_iou_by_hand():
    box = np.array([0, 0, 0.5, 0.5])
    others = [[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.5, 0.5, 1, 1], [0.1, 0.1, 0.2, 0.3]]
    np.testing.assert_allclose(box_iou(box, np.array(others)), [1, 1 / 3, 0, 0.02 / 0.25])
    crossed = np.array([0.5, 0, 0, 0.5])
    assert box_iou(crossed, box[None]) == 0
    assert box_iou(crossed, crossed[None]) == 0
    rng = np.random.default_rng(0)
    for _ in range(20):  # counted on a grid
        a, b = (np.sort(rng.integers(0, 9, (2, 2)), axis=0).ravel() for _ in range(2))
        cells = [np.zeros((9, 9), bool) for _ in range(2)]
        for grid, (x1, y1, x2, y2) in zip(cells, (a, b), strict=True):
            grid[y1:y2, x1:x2] = True
        union = (cells[0] | cells[1]).sum()
        wanted = (cells[0] & cells[1]).sum() / union if union else 0
        assert box_iou(a, b[None])[0] == pytest.approx(wanted)


def test_grounding_asks_each_text_once_and_takes_the_best_box():
    def fraction(box):
        return tuple(np.array(box) / SIZE)

    records = [scene(("cat", LEFT), ("cat", RIGHT)), scene(), scene(("dog", TOP), ("cup", LOW))]
    boxes = {
        "cat": fraction(RIGHT),
        "dog": fraction((4, 0, 8, 7)),  # too high: 4 / 7
        "cup": fraction((8, 8, 4, 12)),  # crossed corners
    }
    evaluator = Grounding("g", records, Planted(boxes=boxes))
    assert evaluator.run(None) == pytest.approx({"iou": (1 + 4 / 7) / 3, "acc@0.5": 2 / 3})
    assert evaluator.protocol["texts"] == 3
    mean = np.mean([LEFT, RIGHT, TOP, LOW], axis=0) / SIZE
    chance = [max(iou(mean, fraction(b)) for b in some) for some in ((LEFT, RIGHT), (TOP,), (LOW,))]
    assert evaluator.protocol["chance"]["iou"] == pytest.approx(np.mean(chance))
    phrases = Grounding("g", records[2:], Planted(boxes={"the dog": (0,) * 4, "the cup": (0,) * 4}))
    with pytest.raises(KeyError):
        phrases.run(None)  # names are asked, not phrases
    chosen = Planted(boxes={"the dog": fraction(TOP), "the cup": fraction(LOW)})
    asked = Grounding("g", records[2:], chosen, text_field="region_text")
    assert asked.run(None)["iou"] == pytest.approx(1, abs=1e-6)
    with pytest.raises(UserError, match="diverged"):
        Grounding("g", records, Planted(boxes=dict.fromkeys(boxes, (math.nan,) * 4))).run(None)


def iou(a, b):
    """Of two boxes, by lengths."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def test_scenes_have_what_the_evaluators_read():
    source = {"kind": "scenes", "length": 6, "backgrounds": "noise"}
    kinds = ("region_classification", "region_retrieval", "hard_negatives", "grounding")

    class Any(Same):
        def ground(self, params, images, texts):
            return [np.tile(np.float32([0, 0, 1, 1]), (len(some), 1)) for some in texts]

    entries = {kind: {"kind": kind, "source": source} for kind in kinds}
    evaluators = make_evaluators(entries, Any())
    records = list(Scenes(6, backgrounds="noise"))
    areas = [np.prod(box[2:] - box[:2]) for record in records for box in record["boxes"]]
    assert evaluators["grounding"].run(None)["iou"] == pytest.approx(np.mean(areas), rel=1e-5)
    negatives = sum(len(record["hard_negatives"]) for record in records)
    for kind in kinds[:3]:
        found = evaluators[kind].run(None)
        assert found == pytest.approx(evaluators[kind].protocol["chance"])
        assert evaluators[kind].protocol["kind"] == kind
    assert evaluators["region_retrieval"].protocol["regions"] == len(areas)
    assert evaluators["hard_negatives"].protocol["pairs"] == negatives


def test_galleries_show_evenly_spaced_images_with_regions():
    source = scenes() * 4
    (gallery,) = RegionRetrieval("phrases", source, Planted(table(0))).galleries(None, n=4)
    assert "phrases" in gallery.title
    # Places 2, 6, 10 and 14 of 16.
    assert [len(regions) for _, regions in gallery.images] == [3, 3, 3, 3]
    image, (cup, *_) = gallery.images[0]
    np.testing.assert_array_equal(image, source[2]["image"])
    np.testing.assert_allclose(cup.box_4, np.array(TOP) / SIZE)
    assert cup.text == "the cup"
    assert [a.right for a in cup.answers].count(True) == (cup.rank <= 3)
    (classes,) = RegionClassification("c", source, Planted()).galleries(None, n=3)
    assert len(classes.images) == 3
    assert all(r.rank == 1 and r.answers[0].right for _, some in classes.images for r in some)
    boxes = {name: tuple(np.array(LEFT) / SIZE) for name in WORDS}
    (found,) = Grounding("b", source, Planted(boxes=boxes)).galleries(None, n=2)
    assert [[one.text for one in some] for _, some in found.images] == [
        ["cat", "dog"],
        ["cat", "dog"],
    ]
    assert found.images[0][1][0].iou == pytest.approx(1)
    # Images without regions are passed over.
    alone = [scene(), scene(), scene(("cat", LEFT)), scene()]
    (one,) = RegionClassification("c", alone, Planted(), classes=WORDS).galleries(None, n=2)
    assert len(one.images) == 1
