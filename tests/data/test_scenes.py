"""Composed scenes as a source: the same everywhere, refused settings, written records."""

import concurrent.futures
import copy
import hashlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipjax.data.bad import BadRecord
from clipjax.data.drawings import TEST_STYLE, TRAIN_STYLES, Drawings
from clipjax.data.images import decode
from clipjax.data.scenes import (
    TEST_PHOTOS,
    TRAIN_PHOTOS,
    Scenes,
    backgrounds,
    sprites,
)
from clipjax.data.scenes.layout import Layout
from clipjax.data.scenes.sheet import sheet
from clipjax.data.sources import make_source
from clipjax.data.sources.array_record import ArrayRecords
from clipjax.errors import UserError

ROOT = Path(__file__).parents[2]
ARRAYS = {"image", "boxes", "boxes_full", "masks", "occlusion"}


def digest(record):
    h = hashlib.sha256()
    for key, value in sorted(record.items()):
        data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        h.update(key.encode() + data)
    return h.hexdigest()


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
from clipjax.data.scenes import Scenes, backgrounds
for name in backgrounds.PHOTOS:
    Scenes(backgrounds=name)[0]
assert not any(m.split(".")[0] in ("skimage", "pooch") for m in sys.modules)
from tests.data.test_scenes import digest
print(*[digest(Scenes(seed=7)[i]) for i in (5, 2)])
"""


def test_same_in_another_process_and_without_a_network():
    """Every photograph is read from the installed package, which is not imported; nor is what would download."""
    env = dict(os.environ, PYTHONHASHSEED="12345", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], env=env, capture_output=True, text=True, check=False
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


def test_categories():
    source = Scenes(length=20, categories="Activities", backgrounds="plain")
    everything = {c.name: c.category for c in sprites.concepts("seen", source.styles, "en")}
    assert {everything[n] for record in source for n in record["names"]} == {"Activities"}
    assert Scenes(**source.settings).settings == source.settings
    whole, named = (
        Scenes(length=3),
        Scenes(length=3, categories=tuple(dict.fromkeys(everything.values()))),
    )
    assert [r["text"] for r in whole] == [r["text"] for r in named]


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
    spec = copy.copy(
        importlib.util.find_spec("skimage")
    )  # an imported package's own would stay changed
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
    image = np.asarray(decode(source[0]["image"]), np.float32)
    assert image.shape == (128, 128, 3)
    assert np.abs(image - plain[0]["image"]).mean() < 6
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
        ({"categories": "Activites"}, ["did you mean 'Activities'"]),
        ({"categories": ()}, ["one or several names"]),
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
    image = tmp_path / "sheet.png"
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
    program().main([f"--sheet={image}", "--count=1"])
    before = image.read_bytes()
    with pytest.raises(SystemExit):
        program().main([f"--sheet={image}", "--count=2"])
    assert image.read_bytes() == before
