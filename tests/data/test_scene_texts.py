"""What composed scenes say of themselves, checked by code that shares nothing with what said it."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data.drawings import TEST_STYLE, TRAIN_STYLES, Drawings
from clipjax.data.scenes import (
    Scenes,
    backgrounds,
    facts,
    sprites,
    texts,
)
from clipjax.data.scenes import source as source_module
from clipjax.data.scenes.layout import MIN_PIXELS, Layout, Object

SETTINGS = [
    {},
    {"duplicates": 1.0, "objects": (2, 4), "seed": 5},
    {"size": (160, 96), "max_occlusion": 0.9, "objects": (6, 8), "scale": (0.3, 0.6)},
    {"max_occlusion": 0, "backgrounds": ("plain", "gradient", "noise", "coffee")},
    {"split": "unseen", "styles": TEST_STYLE, "backgrounds": "test_photos", "rotate": 45.0},
]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def records(request):
    source = Scenes(length=60, **request.param)
    return [source[i] for i in range(len(source))]


# What a phrase says, by its words alone.

WHERE = {
    "at the top left": (0, 0),
    "at the top right": (0, 2),
    "at the top": (0, 1),
    "on the left": (1, 0),
    "in the middle": (1, 1),
    "on the right": (1, 2),
    "at the bottom left": (2, 0),
    "at the bottom right": (2, 2),
    "at the bottom": (2, 1),
}
LINKS = ("to the left of", "to the right of", "above", "below", "in front of", "behind")


def middle(box):
    return (float(box[0]) + float(box[2])) / 2, (float(box[1]) + float(box[3])) / 2


def area(box):
    return (float(box[2]) - float(box[0])) * (float(box[3]) - float(box[1]))


def meant(ref, record):
    """Which object "camel", "left camel" or "smaller camel" means; None if it means none, or more than one."""
    names = record["names"]
    if names.count(ref) == 1:
        return names.index(ref)
    word, _, name = ref.partition(" ")
    if names.count(name) != 2:
        return None
    order = {
        "left": lambda i: middle(record["boxes"][i])[0],
        "right": lambda i: -middle(record["boxes"][i])[0],
        "upper": lambda i: middle(record["boxes"][i])[1],
        "lower": lambda i: -middle(record["boxes"][i])[1],
        "smaller": lambda i: area(record["boxes"][i]),
        "larger": lambda i: -area(record["boxes"][i]),
    }.get(word)
    twins = [i for i, other in enumerate(names) if other == name]
    return order and min(twins, key=order)


def linked(i, link, j, record):
    """Whether a relation holds, in the weakest sense of its words."""
    (x, y), (u, v) = middle(record["boxes"][i]), middle(record["boxes"][j])
    if link in ("in front of", "behind"):
        front, back = (i, j) if link == "in front of" else (j, i)
        a, b = record["boxes_full"][front], record["boxes_full"][back]
        overlap = min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
        return front > back and overlap and record["occlusion"][back] > 0
    return {
        "to the left of": x < u,
        "to the right of": x > u,
        "above": y < v,
        "below": y > v,
    }[link]


def holds(phrase, record):
    """Whether a phrase such as "the small camel at the top left" is true of some object of the scene."""
    for link in LINKS:
        for match in re.finditer(f" {link} the ", phrase):
            i = meant(phrase[: match.start()].removeprefix("the "), record)
            j = meant(phrase[match.end() :], record)
            if i is not None and j is not None:
                return linked(i, link, j, record)
    for where, (row, column) in WHERE.items():
        if phrase.startswith("the ") and phrase.endswith(f" {where}"):
            thing = phrase[4 : -len(where) - 1]
            i, size = meant(thing, record), None
            if i is None:
                size, _, thing = thing.partition(" ")
                i = meant(thing, record)
            if i is None:
                return False
            x, y = middle(record["boxes"][i])
            right = (math.floor(3 * y), math.floor(3 * x)) == (row, column)
            side = math.sqrt(area(record["boxes"][i]))
            return right and {None: True, "small": side < 0.2, "large": side > 0.35}[size]
    return meant(phrase.removeprefix("a drawing of ").removeprefix("the "), record) is not None


def all_hold(caption, record):
    return all(holds(phrase, record) for phrase in caption.split(", "))


def test_boxes_are_the_bounds_of_masks(records):
    for record in records:
        height, width = record["image"].shape[:2]
        assert record["image"].dtype == np.uint8
        assert record["masks"].dtype == bool
        assert record["boxes"].dtype == record["boxes_full"].dtype == np.float32
        assert record["masks"].shape == (len(record["names"]), height, width)
        for mask, box in zip(record["masks"], record["boxes"], strict=True):
            y, x = np.nonzero(mask)
            exact = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_allclose(box * (width, height, width, height), exact, atol=1e-4)


def test_masks_are_disjoint_and_objects_are_to_be_seen(records):
    for record in records:
        assert record["masks"].sum(axis=0).max() == 1
        assert record["masks"].sum(axis=(1, 2)).min() >= MIN_PIXELS
        small, large = record["boxes"], record["boxes_full"]
        assert (large[:, :2] <= small[:, :2] + 1e-6).all()
        assert (large[:, 2:] >= small[:, 2:] - 1e-6).all()
        assert (large >= 0).all()
        assert (large <= 1).all()


@pytest.mark.parametrize("most", [0.0, 0.3, 0.9])
def test_nothing_is_hidden_more_than_allowed(most):
    source = Scenes(40, objects=(6, 6), scale=(0.3, 0.5), max_occlusion=most, backgrounds="plain")
    shares = np.concatenate([source[i]["occlusion"] for i in range(len(source))])
    assert shares.dtype == np.float32
    assert 0 <= shares.min() <= shares.max() <= most + 1e-6
    assert shares.max() >= 0.8 * most


def test_everything_has_one_entry_an_object(records):
    for record in records:
        count = len(record["names"])
        assert count
        for key in (
            "boxes",
            "boxes_full",
            "masks",
            "occlusion",
            "region_text",
            "concepts",
            "styles",
        ):
            assert len(record[key]) == count, key
        every = Drawings("all", (*TRAIN_STYLES, TEST_STYLE), group="concept")
        assert record["names"] == [every[c]["name"] for c in record["concepts"]]


def test_captions_are_true(records):
    for record in records:
        assert len(record["text"]) in (2, 3)
        assert len(record["text"][0].split(", ")) == len(record["names"])
        for caption in record["text"]:
            assert all_hold(caption, record), caption


def test_region_texts_are_true_and_mean_their_object(records):
    for record in records:
        for i, alternatives in enumerate(record["region_text"]):
            for text in alternatives:
                assert holds(text, record), text
                # All but the name itself are phrases about the object that they begin with.
                others = {t for j, ts in enumerate(record["region_text"]) if j != i for t in ts}
                assert text not in others
            first = alternatives[0].removeprefix("the ")
            assert meant(first, record) == i


def test_relations_are_true_and_the_same_as_triples(records):
    found = 0
    for record in records:
        assert len(record["relations"]) == len(record["triples"])
        for phrase, (i, link, j) in zip(record["relations"], record["triples"], strict=True):
            assert holds(phrase, record), phrase
            assert linked(i, link, j, record)
            found += 1
    assert found > 50


def test_hard_negatives_are_false_and_differ_from_the_right_one_in_one_thing(records):
    kinds = set()
    for record in records:
        rows = zip(
            record["hard_negatives"], record["negative_kinds"], record["negative_of"], strict=True
        )
        for wrong, kind, of in rows:
            right = record["text"][of]
            assert wrong not in record["text"]
            assert not all_hold(wrong, record), wrong
            if kind != "relation":
                pairs = list(zip(wrong.split(", "), right.split(", "), strict=True))
                assert sum(a != b for a, b in pairs) == 1
                assert sum(not holds(a, record) for a, _ in pairs) == 1
            else:
                assert sorted(wrong.split()) == sorted(right.split())
            kinds.add(kind)
    assert kinds == {"object", "size", "place", "relation"}


def test_swapped_names_are_not_in_the_scene_nor_on_the_photograph():
    source = Scenes(length=200, backgrounds="chelsea")
    every = {c.english: c for c in sprites.concepts("seen", TRAIN_STYLES, "en")}
    for i in range(len(source)):
        record = source[i]
        for wrong, of in zip(record["hard_negatives"], record["negative_of"], strict=True):
            for name in set(wrong.split(", ")) - set(record["names"]) if of == 0 else ():
                assert "cat" not in every[name].words
                for there in record["names"]:
                    assert every[name].words.isdisjoint(every[there].keywords)
        assert {"cat", "cat face"}.isdisjoint(record["names"])


def test_names_identify_objects(records):
    for record in records:
        words = [set(re.findall(r"\w+", name.lower())) for name in record["names"]]
        same = [a == b for a, b in itertools.combinations(words, 2)]
        subsets = [a <= b or b <= a for a, b in itertools.combinations(words, 2)]
        assert sum(subsets) == sum(same) <= 1


def test_duplicates_are_told_apart():
    source = Scenes(length=150, duplicates=1.0, objects=(2, 3), backgrounds="plain")
    words = set()
    for i in range(len(source)):
        record = source[i]
        twins = [n for n in record["names"] if record["names"].count(n) == 2]
        if twins:
            i, j = (k for k, name in enumerate(record["names"]) if name == twins[0])
            refs = [record["region_text"][k][0].removeprefix("the ") for k in (i, j)]
            assert [meant(ref, record) for ref in refs] == [i, j]
            words |= {ref.removesuffix(f" {twins[0]}") for ref in refs}
            assert not any({i, j} == {a, b} for a, _, b in record["triples"])
    assert words == {"smaller", "larger", "left", "right", "upper", "lower"}


def test_images_are_the_background_but_for_the_objects():
    source = Scenes(length=20, backgrounds="plain", seed=3)
    for i in range(len(source)):
        record = source[i]
        _, plain = backgrounds.draw(("plain",), (128, 128), np.random.default_rng((3, i)))
        changed = (record["image"] != plain).any(axis=2)
        inside = np.zeros_like(changed)
        for x1, y1, x2, y2 in np.round(record["boxes_full"] * 128).astype(int):
            inside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = True
        assert not (changed & ~inside).any()
        for mask in record["masks"]:
            assert changed[mask].mean() > 0.9


def test_layout_of_squares():
    """An opaque square over a third of another, both partly outside."""

    def square(side, left, top):
        return Object(np.full((side, side, 4), 255, np.uint8), left, top)

    layout = Layout.empty((40, 30)).add(square(12, -3, 10), 0.6)
    layout = layout.add(square(12, 5, 10), 0.6)
    assert layout.masks().sum(axis=(1, 2)).tolist() == [5 * 12, 144]
    np.testing.assert_allclose(layout.occlusion(), [1 - 60 / 144, 0])
    np.testing.assert_allclose(
        layout.boxes(), [[0, 1 / 3, 5 / 40, 22 / 30], [5 / 40, 1 / 3, 17 / 40, 22 / 30]]
    )
    np.testing.assert_allclose(layout.boxes_full()[0], [0, 1 / 3, 9 / 40, 22 / 30], rtol=1e-6)
    np.testing.assert_allclose(layout.cover(), [[60 / 144, 48 / 144], [0, 1]])
    painted = layout.paint(np.zeros((30, 40, 3), np.uint8))
    np.testing.assert_array_equal(painted[..., 0] == 255, layout.masks().any(axis=0))


def test_layouts_refuse_what_hides_too_much():
    square = np.full((12, 12, 4), 255, np.uint8)
    layout = Layout.empty((40, 30)).add(Object(square, 10, 10), 0.5)
    assert layout.add(Object(square, 15, 10), 0.5) is None  # 7 of 12 columns hidden
    assert layout.add(Object(square, 16, 10), 0.5) is not None
    assert layout.add(Object(square, -7, 10), 0.5) is None  # 7 of 12 outside
    assert layout.add(Object(square, 100, 100), 0.9) is None
    assert layout.add(Object(square[:4, :5], 30, 0), 0.5) is None  # 20 pixels


intervals = st.sets(st.integers(0, 32), min_size=2, max_size=2).map(sorted)
boxes = st.tuples(intervals, intervals).map(
    lambda v: (v[0][0] / 32, v[1][0] / 32, v[0][1] / 32, v[1][1] / 32)
)
INVERSE = dict(
    zip(
        LINKS,
        ("to the right of", "to the left of", "below", "above", "behind", "in front of"),
        strict=True,
    )
) | {"": ""}


@given(boxes, boxes)
@settings(deadline=None)
def test_directions_have_an_inverse_and_words_that_tell_apart_too(one, other):
    assert facts.direction(other, one) == INVERSE[facts.direction(one, other)]
    words = facts.apart(one, other, one, other)
    assert facts.apart(other, one, other, one) == (words and words[::-1])


@given(boxes)
def test_the_opposite_place_is_another_one(box):
    where = facts.place(box)
    assert facts.PLACES[where] != facts.PLACES[facts.opposite(where)]


def test_a_hidden_part_makes_nothing_small():
    assert facts.size((0, 0, 0.1, 0.1), (0, 0, 0.1, 0.1)) == "small"
    assert facts.size((0, 0, 0.1, 0.3), (0, 0, 0.4, 0.3)) == ""
    assert facts.size((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5)) == "large"


def test_a_small_airplane_is_not_called_a_large_small_airplane():
    scene = texts.Facts(["small airplane"], ["small airplane"], ["large"], [(1, 1)], [], True)
    assert texts.captions(scene, None)[1] == "the small airplane in the middle"
    wrong = texts.negatives(scene, None, None, np.random.default_rng(0))
    assert [n.text for n in wrong] == ["the small airplane at the top left"]


def test_clocks_and_moons_are_not_mirrored():
    oriented = {c.english for c in sprites.concepts("all", TRAIN_STYLES, "en") if c.oriented}
    expected = {"two o’clock", "six-thirty", "waxing crescent moon", "first quarter moon face"}
    assert (
        expected | {"magnifying glass tilted left", "chart decreasing", "map of Japan"} <= oriented
    )
    assert len(oriented) == 42
    assert {"crescent moon", "camel", "world map"} & oriented == {"world map"}


@pytest.mark.parametrize("oriented", [True, False])
def test_flips_and_rotations(monkeypatch, oriented):
    some = tuple(c for c in sprites.concepts("seen", TRAIN_STYLES, "en") if c.oriented == oriented)
    monkeypatch.setattr(source_module, "concepts", lambda *settings: some)
    calls = []
    monkeypatch.setattr(
        source_module, "sprite", lambda *args: calls.append(args[2:]) or sprites.sprite(*args)
    )
    source = Scenes(length=10, flip=1.0, rotate=30.0, backgrounds="plain")
    assert all(source[i]["names"] for i in range(10))
    if oriented:
        assert set(calls) == {(False, 0.0)}
    else:
        assert {flip for flip, _ in calls} == {True}
        assert 10 < max(abs(angle) for _, angle in calls) <= 30


def test_sprites():
    tile = np.zeros((64, 64, 4), np.uint8)
    tile[10:20, 5:45] = (200, 0, 0, 255)
    tile[10:20, 5:10] = (0, 0, 200, 255)
    made = sprites.sprite(tile, 20, False, 0)
    assert made.shape == (5, 20, 4)
    flipped = sprites.sprite(tile, 20, True, 0)
    np.testing.assert_array_equal(flipped, made[:, ::-1])
    assert sprites.sprite(tile, 20, False, 45).shape[0] > 12
