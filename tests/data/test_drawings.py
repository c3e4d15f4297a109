import hashlib
import io
import pickle
import re

import numpy as np
import pytest

from clipjax.data import drawings
from clipjax.data.drawings import TEST_STYLE, TRAIN_STYLES, Drawings
from clipjax.errors import UserError

STYLES = (*TRAIN_STYLES, TEST_STYLE)
COVERAGE = {
    "noto": 857,
    "twemoji": 857,
    "openmoji": 857,
    "noto_v1": 650,
    "emojione": 651,
    "fluent_3d": 849,
}


def concepts_of(source):
    return {source[i]["concept"] for i in range(len(source))}


def flat(image, background):
    alpha = image[..., 3:].astype(np.float32) / 255
    return image[..., :3] * alpha + background * (1 - alpha)


@pytest.mark.parametrize(("split", "count"), [("seen", 673), ("unseen", 184), ("all", 857)])
def test_number_of_concepts(split, count):
    source = Drawings(split, group="concept")
    assert len(source) == count == len(concepts_of(source))


@pytest.mark.parametrize("style", STYLES)
def test_coverage_of_a_style(style):
    images = Drawings("all", styles=style)
    assert len(images) == COVERAGE[style] == len(concepts_of(images))
    assert len(Drawings("all", styles=style, group="concept")) == COVERAGE[style]


def test_default_is_what_one_trains_on():
    source = Drawings()
    assert len(source) == 673 * 3 + 503 + 504
    assert TEST_STYLE not in {source[i]["style"] for i in range(len(source))}
    assert TEST_STYLE not in TRAIN_STYLES


def test_split_is_the_hash_of_the_code_point():
    unseen = {
        index
        for index, entry in enumerate(drawings._index()["concepts"])
        if int(hashlib.sha256(entry["code_point"].encode()).hexdigest(), 16) % 5 == 0
    }
    assert concepts_of(Drawings("unseen", group="concept")) == unseen
    assert concepts_of(Drawings("seen", group="concept")).isdisjoint(unseen)


def test_no_train_tile_is_a_test_tile():
    """No rendering of the held-out style may be found, pixel for pixel, in a train style."""
    train = {tile.tobytes() for style in TRAIN_STYLES for tile in drawings._sheet(style)}
    assert train.isdisjoint(tile.tobytes() for tile in drawings._sheet(TEST_STYLE))


def test_code_points_and_english_names_are_distinct():
    entries = drawings._index()["concepts"]
    source = Drawings("all", group="concept")
    names = [source[i]["name"] for i in range(len(source))]
    assert len(set(names)) == len(names) == 857
    assert names == [entry["name"] for entry in entries]
    assert len({entry["code_point"] for entry in entries}) == 857


def test_categories():
    source = Drawings("all", group="concept")
    counts = dict.fromkeys(drawings.categories(), 0)
    for i in range(len(source)):
        counts[source[i]["category"]] += 1
    assert counts == {
        "Animals & Nature": 159,
        "Food & Drink": 131,
        "Travel & Places": 218,
        "Activities": 85,
        "Objects": 264,
    }


def test_records_of_images():
    source = Drawings("all", styles=STYLES)
    assert len(source) == sum(COVERAGE.values())
    for i in range(0, len(source), 7):
        record = source[i]
        (image,) = record["image"]
        assert image.shape == (64, 64, 4)
        assert image.dtype == np.uint8
        assert record["text"] == [record["name"], *record["keywords"]]
        assert record["keywords"]
        assert record["language"] == "en"
        assert record["style"] in STYLES


def test_records_of_concepts_have_every_style():
    source = Drawings("seen", styles=("twemoji", "noto_v1"), group="concept")
    images = Drawings("seen", styles=("twemoji", "noto_v1"))
    assert sum(len(source[i]["image"]) for i in range(len(source))) == len(images)
    assert {len(source[i]["image"]) for i in range(len(source))} == {1, 2}
    assert "style" not in source[0]


@pytest.mark.parametrize("style", STYLES)
def test_backgrounds_are_transparent_and_drawings_are_not_blank(style):
    tiles = drawings._sheet(style)
    assert tiles.shape == (COVERAGE[style], 64, 64, 4)
    opaque = (tiles[..., 3] > 127).mean(axis=(1, 2))
    assert opaque.min() > 0.03
    # Drawings that fill their square (landscapes) are few; a lost alpha channel would fill all.
    assert (opaque > 0.97).mean() < 0.1
    assert (tiles[:, 0, 0, 3] == 0).mean() > 0.85
    spread = [flat(tile, 255).std() for tile in tiles]
    assert min(spread) > 3


@pytest.mark.parametrize(
    ("name", "hue"),
    [("tomato", 0), ("red apple", 0), ("green apple", 1), ("frog", 1), ("blue book", 2)],
)
def test_the_right_drawing_is_at_the_right_name(name, hue):
    source = Drawings("all", styles=STYLES, group="concept")
    (record,) = [r for r in (source[i] for i in range(len(source))) if r["name"] == name]
    assert len(record["image"]) == 6
    for image in record["image"]:
        colour = image[image[..., 3] > 200][:, :3].mean(axis=0)
        assert colour.argmax() == hue


def test_wrong_drawings_are_left_out():
    """Two sets mean the game where CLDR means the insect: they have no drawing of it."""
    source = Drawings("all", group="concept")
    records = {r["name"]: r for r in (source[i] for i in range(len(source)))}
    assert len(records["cricket"]["image"]) == 3
    assert len(records["cricket game"]["image"]) == 5


@pytest.mark.parametrize("locale", drawings.locales())
def test_locales_are_complete(locale):
    source = Drawings("all", group="concept", locales=locale)
    records = [source[i] for i in range(len(source))]
    assert len({record["name"] for record in records}) == 857
    for record in records:
        assert record["language"] == locale
        assert record["keywords"]
        assert all(text == " ".join(text.split()) != "" for text in record["text"])
        assert not any(re.search("\ufe0f|↑", text) for text in record["text"])


def test_locales_are_many_and_differ():
    assert next(iter(drawings.locales())) == "en"
    assert len(drawings.locales()) >= 31
    source = Drawings("all", group="concept", locales=("en", "de", "hi", "zh"))
    assert len(source) == 4 * 857
    same = [source[i] for i in range(400, 404)]
    assert len({record["concept"] for record in same}) == 1
    assert [record["language"] for record in same] == ["en", "de", "hi", "zh"]
    assert len({record["name"] for record in same}) == 4
    assert all(np.array_equal(record["image"][0], same[0]["image"][0]) for record in same)


def test_names_in_german():
    source = Drawings("all", group="concept", locales=("en", "de"))
    german = {source[i]["name"]: source[i + 1]["name"] for i in range(0, len(source), 2)}
    assert german["elephant"] == "Elefant"
    assert german["strawberry"] == "Erdbeere"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "sene"}, ["split 'sene'", "'seen'"]),
        ({"styles": ("notto",)}, ["style 'notto'", "'noto'"]),
        ({"styles": "fluent"}, ["style 'fluent'", "'fluent_3d'"]),
        ({"styles": "xxxxxx"}, ["style 'xxxxxx'", *STYLES]),
        ({"styles": ()}, ["at least one"]),
        ({"styles": ("noto", "noto")}, ["each style once"]),
        ({"group": "concepts"}, ["group 'concepts'", "'concept'"]),
        ({"locales": ("en", "en_GB")}, ["locale 'en_GB'", "'en'"]),
    ],
)
def test_bad_arguments_name_the_way_out(arguments, words):
    with pytest.raises(UserError) as error:
        Drawings(**arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_indices():
    source = Drawings("unseen", group="concept")
    assert source[np.int64(3)]["name"] == source[3]["name"]
    assert source[-1]["name"] == source[len(source) - 1]["name"]
    for bad in (len(source), -len(source) - 1):
        with pytest.raises(IndexError):
            source[bad]


def test_images_cannot_be_spoilt():
    image = Drawings()[0]["image"][0]
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0, 0] = 1


def test_pickles_are_small_and_equal():
    source = Drawings("unseen", STYLES, "picture", ("en", "ja"))
    source[0]  # sheets decoded
    data = pickle.dumps(source)
    assert len(data) < 500
    copy = pickle.load(io.BytesIO(data))
    assert len(copy) == len(source)
    assert repr(copy) == repr(source)
    for i in (0, 17, len(source) - 1):
        ours, theirs = source[i], copy[i]
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == theirs[key] for key in ours if key != "image")
        np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_licences_are_there():
    notice = drawings._read("LICENSES/NOTICE.txt").decode()
    named = re.findall(r"^(\w+)\.webp: .*\n  Licence: ([\w.-]+), see (\S+\.txt)", notice, re.M)
    assert [style for style, _, _ in named] == list(STYLES)
    assert {licence for _, licence, _ in named} == {
        "Apache-2.0",
        "CC-BY-4.0",
        "CC-BY-SA-4.0",
        "MIT",
    }
    for name in re.findall(r"see (\S+\.txt)", notice):
        assert len(drawings._read(f"LICENSES/{name}")) > 1000
