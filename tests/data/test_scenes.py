"""Composed scenes: boxes, masks and texts are checked against each other by code that shares nothing with theirs."""

import concurrent.futures
import hashlib
import importlib.util
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data.bad import BadRecord
from clipjax.data.drawings import TEST_STYLE, TRAIN_STYLES, Drawings
from clipjax.data.images import decode
from clipjax.data.scenes import (
    TEST_PHOTOS,
    TRAIN_PHOTOS,
    Scenes,
    backgrounds,
    facts,
    sprites,
    texts,
)
from clipjax.data.scenes import source as source_module
from clipjax.data.scenes.layout import MIN_PIXELS, Layout, Object
from clipjax.data.scenes.sheet import sheet
from clipjax.data.sources import make_source
from clipjax.data.sources.array_record import ArrayRecords
from clipjax.errors import UserError

ROOT = Path(__file__).parents[2]
SETTINGS = [
    {},
    {"duplicates": 1.0, "objects": (2, 4), "seed": 5},
    {"size": (160, 96), "max_occlusion": 0.9, "objects": (6, 8), "scale": (0.3, 0.6)},
    {"max_occlusion": 0, "backgrounds": ("plain", "gradient", "noise", "coffee")},
    {"split": "unseen", "styles": TEST_STYLE, "backgrounds": "test_photos", "rotate": 45.0},
]
ARRAYS = {"image", "boxes", "boxes_full", "masks", "occlusion"}


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def records(request):
    source = Scenes(length=60, **request.param)
    return [source[i] for i in range(len(source))]


def digest(record):
    h = hashlib.sha256()
    for key, value in sorted(record.items()):
        data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        h.update(key.encode() + data)
    return h.hexdigest()


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


def test_pictures_are_the_background_but_for_the_objects():
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


def test_same_whatever_was_read_before_and_in_threads():
    source = Scenes(length=24, seed=7)
    right = [digest(source[i]) for i in range(24)]
    assert len(set(right)) == 24
    assert [digest(source[i]) for i in reversed(range(24))] == right[::-1]
    np.random.seed(1)  # noqa: NPY002  # somebody else's randomness
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert [digest(r) for r in pool.map(source.__getitem__, range(24))] == right
    assert [digest(Scenes(length=1000, seed=7)[i]) for i in range(24)] == right


PROCESS = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("no network in this test")
socket.socket.connect = socket.getaddrinfo = refuse
sys.path.insert(0, {tests!r})
from clipjax.data.scenes import Scenes, backgrounds
for name in backgrounds.PHOTOS:
    Scenes(backgrounds=name)[0]
assert not any(m.split(".")[0] in ("skimage", "pooch") for m in sys.modules)
from test_scenes import digest
print(*[digest(Scenes(seed=7)[i]) for i in (5, 2)])
"""


def test_same_in_another_process_and_without_a_network():
    """Every photograph is read from the installed package, which is not imported; nor is what would download."""
    program = PROCESS.format(tests=str(Path(__file__).parent))
    env = dict(os.environ, PYTHONHASHSEED="12345", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    source = Scenes(seed=7)
    assert done.stdout.split() == [digest(source[5]), digest(source[2])]


def test_seeds_differ():
    one, other = Scenes(seed=0), Scenes(seed=1)
    assert all(digest(one[i]) != digest(other[i]) for i in range(10))
    assert digest(one[0]) != digest(one[1])


def test_pickles_are_small_and_equal():
    source = Scenes(length=10, seed=2, split="unseen", styles=TEST_STYLE, size=96)
    source[0]
    data = pickle.dumps(source)
    assert len(data) < 1500
    copy = pickle.loads(data)
    assert repr(copy) == repr(source)
    assert digest(copy[3]) == digest(source[3])


def test_indices():
    source = Scenes(length=3, backgrounds="plain")
    assert digest(source[-1]) == digest(source[np.int64(2)])
    for bad in (3, -4):
        with pytest.raises(IndexError):
            source[bad]


@pytest.mark.parametrize("locale", ["de", "zh"])
def test_other_locales_have_names_only(locale):
    source, english = Scenes(length=20, locale=locale), Scenes(length=20)
    local = {
        record["concept"]: record["name"]
        for record in map(Drawings("all", group="concept", locales=locale).__getitem__, range(857))
    }
    for i in range(len(source)):
        record = source[i]
        np.testing.assert_array_equal(record["image"], english[i]["image"])
        assert record["concepts"] == english[i]["concepts"]
        assert record["language"] == locale
        assert record["names"] == [local[c] for c in record["concepts"]]
        assert record["region_text"] == [[name] for name in record["names"]]
        assert record["text"] == [", ".join(record["names"])]
        assert record["relations"] == []
        assert record["negative_kinds"] == ["object"]
        assert record["hard_negatives"][0] != record["text"][0]


def test_names_only():
    source, english = Scenes(length=10, names_only=True), Scenes(length=10)
    for i in range(10):
        assert source[i]["region_text"] == [[name] for name in english[i]["names"]]
        assert source[i]["triples"] == english[i]["triples"]
        assert source[i]["relations"] == []


def test_splits_styles_and_backgrounds_are_held_out():
    train, test = (
        Scenes(length=60),
        Scenes(60, split="unseen", styles=TEST_STYLE, backgrounds="test_photos"),
    )
    seen, unseen = ([s[i] for i in range(60)] for s in (train, test))
    assert {r["background"] for r in seen} == set(TRAIN_PHOTOS)
    assert {r["background"] for r in unseen} == set(TEST_PHOTOS)
    assert not set(TRAIN_PHOTOS) & set(TEST_PHOTOS)
    assert {s for r in unseen for s in r["styles"]} == {TEST_STYLE}
    assert {s for r in seen for s in r["styles"]} == set(TRAIN_STYLES)
    both = [{c for r in records for c in r["concepts"]} for records in (seen, unseen)]
    assert both[0].isdisjoint(both[1])


def test_photographs_show_things_that_there_are():
    names = {c.english for c in sprites.concepts("all", TRAIN_STYLES, "en")}
    for name in backgrounds.PHOTOS:
        assert set(backgrounds.shown(name)) <= names


def test_without_scikit_image(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clipjax\[scenes\]', or set backgrounds='pl"):
        Scenes()
    assert len(Scenes(backgrounds=("plain", "gradient", "noise"))[0]["names"])


def test_an_installed_scikit_image_that_lacks_a_photograph(monkeypatch, tmp_path):
    spec = importlib.util.find_spec("skimage")
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"lacks the photograph coffee\.png"):
        Scenes(backgrounds="coffee")


def test_numbers_of_objects():
    source = Scenes(length=80, objects=(2, 4), scale=(0.12, 0.3), backgrounds="plain")
    counts = [len(source[i]["names"]) for i in range(80)]
    assert set(counts) == {2, 3, 4}
    crowded = Scenes(length=10, objects=(9, 9), scale=(0.6, 0.9), max_occlusion=0)
    assert max(len(crowded[i]["names"]) for i in range(10)) < 9


def test_scenes_without_any_object_are_bad_records(monkeypatch):
    monkeypatch.setattr(Layout, "add", lambda self, item, most: None)
    with pytest.raises(BadRecord, match="no object"):
        Scenes(backgrounds="plain")[0]


def test_jpeg():
    source, plain = Scenes(length=2, jpeg=90), Scenes(length=2)
    assert isinstance(source[0]["image"], bytes)
    picture = np.asarray(decode(source[0]["image"]), np.float32)
    assert picture.shape == (128, 128, 3)
    assert np.abs(picture - plain[0]["image"]).mean() < 6
    assert source[0]["text"] == plain[0]["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"length": 0}, ["at least 1", "'length'"]),
        ({"length": 1.5}, ["whole number", "1.5"]),
        ({"seed": -1}, ["'seed'", "-1"]),
        ({"size": 16}, ["'size'", "32"]),
        ({"size": (128, 128, 3)}, ["(width, height)"]),
        ({"size": "large"}, ["'size'", "'large'"]),
        ({"objects": 3}, ["(low, high)", "'objects'"]),
        ({"objects": (3, 2)}, ["'objects'", "(3, 2)"]),
        ({"objects": (0, 2)}, ["from 1 to 50"]),
        ({"scale": (0.5, 0.2)}, ["'scale'"]),
        ({"scale": (0.2, 1.5)}, ["up to 1"]),
        ({"scale": (0.05, 0.5)}, ["less than 8 pixels", "begin at 0.0625"]),
        ({"split": "sene"}, ["'sene'", "'seen'"]),
        ({"styles": "notto"}, ["'notto'", "'noto'"]),
        ({"locale": "en_GB"}, ["'en_GB'"]),
        ({"locale": ("en", "de")}, ["one language"]),
        ({"backgrounds": "photo"}, ["'photo'", "'photos'"]),
        ({"backgrounds": ()}, ["at least one"]),
        ({"backgrounds": ("plain", "plain")}, ["once"]),
        ({"max_occlusion": 1.0}, ["'max_occlusion'", "0.95"]),
        ({"max_occlusion": float("nan")}, ["'max_occlusion'"]),
        ({"flip": 2}, ["'flip'", "from 0 to 1"]),
        ({"rotate": "much"}, ["'rotate'"]),
        ({"duplicates": True}, ["'duplicates'"]),
        ({"duplicates": 0.5, "locale": "de"}, ["duplicates=0", "locale='en'"]),
        ({"duplicates": 0.5, "names_only": True}, ["duplicates=0", "names_only=False"]),
        ({"names_only": 1}, ["True or False"]),
        ({"jpeg": 0}, ["'jpeg'", "from 1 to 100"]),
    ],
)
def test_wrong_settings_name_the_way_out(arguments, words):
    with pytest.raises(UserError) as error:
        Scenes(**arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_as_a_source_of_a_config():
    source = make_source(
        {"kind": "scenes", "length": 5, "size": (64, 96), "scale": [0.2, 0.4], "weight": 2.0}, "s"
    )
    assert source[0]["image"].shape == (96, 64, 3)
    with pytest.raises(UserError, match="did you mean 'objects'"):
        make_source({"kind": "scenes", "object": (1, 2)}, "s")


def test_sheet():
    source = Scenes(length=4, objects=(1, 2))
    page = sheet([source[i] for i in range(4)], columns=2)
    assert page.width == 670
    assert page.height > 700


def program():
    spec = importlib.util.spec_from_file_location("make_scenes", ROOT / "tools" / "make_scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_array_records_come_back_whole(tmp_path, capsys):
    folder = tmp_path / "scenes"
    settings = [
        "--seed=4",
        "--size=96,64",
        "--objects=1,3",
        "--backgrounds=plain,photos",
        "--scale=0.2,0.5",
    ]
    program().main([f"--output={folder}", "--count=7", "--shards=3", *settings])
    assert "7 scenes in 3 files" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 4
    made = Scenes(7, 4, (96, 64), (1, 3), (0.2, 0.5), backgrounds=("plain", "photos"))
    order = [i for shard in range(3) for i in range(shard, 7, 3)]
    read = ArrayRecords(f"{folder}/*.array_record")
    assert len(read) == 7
    for place, i in enumerate(order):
        record, right = read[place], made[i]
        assert record.keys() == right.keys()
        for key, value in right.items():
            if key in ARRAYS:
                assert record[key].dtype == value.dtype
                np.testing.assert_array_equal(record[key], value)
            else:
                assert record[key] == value, key
    stored = json.loads((folder / "scenes.json").read_text())
    assert repr(Scenes(**stored)) == repr(made)


def test_the_program_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    picture = tmp_path / "sheet.png"
    calls = {
        (f"--output={tmp_path / 'full'}", "--count=2"): "holds something already",
        (f"--output={tmp_path / 'new'}", "--count=2", "--shards=3"): "--shards must be",
        (f"--output={tmp_path / 'new'}", "--count=2", "--size=8"): "'size'",
        (f"--output={tmp_path / 'new'}", "--count=0"): "'length'",
        ("--count=2",): "one of --output and --sheet",
    }
    for arguments, words in calls.items():
        with pytest.raises(SystemExit) as end:
            program().main(list(arguments))
        assert end.value.code == 2
        assert words in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "new").exists()
    program().main([f"--sheet={picture}", "--count=1"])
    before = picture.read_bytes()
    with pytest.raises(SystemExit):
        program().main([f"--sheet={picture}", "--count=2"])
    assert picture.read_bytes() == before
