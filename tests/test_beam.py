"""The corpus jobs of tools/beam against plain Python, on Beam's local runner: nothing lost or twice, any workers."""

import json
import sys
from collections import Counter

import pytest
from PIL import Image

pytest.importorskip("apache_beam")

from clipjax.data.bad import BadRecord
from clipjax.data.commands.convert import convert
from clipjax.data.commands.named import named
from clipjax.data.commands.shards import as_json
from clipjax.data.orders.shuffle import Shuffle
from clipjax.data.sources import array_record, make_source
from clipjax.errors import UserError
from tests.tiny_images import jpeg, noise
from tools.beam import (
    common,
    corpus,
    running,
)

TWO = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "coins", "moon")


def start(*arguments):
    args, flags = corpus.make_parser().parse_known_args([str(a) for a in arguments])
    return corpus.start(args, flags)


def removed(folder):
    return [json.loads(line) for p in sorted(folder.glob("removed-*")) for line in p.open()]


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """2,500 records, three ranges of work; every one says its number."""
    folder = tmp_path_factory.mktemp("plain")
    images = [jpeg(noise(i, (64 + 8 * i, 64))) for i in range(12)]
    rows = [
        {
            "image": images[i % 12],
            "text": [f"number {i}"] * (i % 3),
            "language": ("en", "de", "fr")[i % 3],
            "number": i,
            "score": i % 7 / 7,
        }
        for i in range(2500)
    ]
    array_record.write(rows[:1700], folder / "a.arrayrecord")
    array_record.write(rows[1700:], folder / "b.arrayrecord")
    return str(folder / "*.arrayrecord")


class Hostile:
    """Good records between bad ones of every sort."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        good = jpeg(noise(index))
        kind = index % 6
        if kind == 1:
            raise BadRecord("json is broken")
        if kind == 2:
            raise KeyError("surprise")
        image = {3: b"no image", 4: good[: len(good) // 2], 5: []}.get(kind, good)
        return {"image": image, "text": [str(index)], "language": "en", "number": index}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs, changed versions and exact copies of each, flat images, other ones; and what is in which place."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    rows, what = [], []

    def add(image, group, kind):
        rows.append({"image": image, "text": [kind], "language": "en"})
        what.append((group, kind))

    for name in PHOTOS:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        width, height = photo.size
        cut = photo.crop((2, 1, width - 2, height - 1))
        add(jpeg(photo.resize((width // 2, height // 2)), 75), name, "half")
        add(jpeg(photo, 60), name, "q60")
        add(jpeg(photo, 95), name, "whole, later the best of equal size")
        add(jpeg(photo, 60), name, "exact copy of q60")
        add(jpeg(cut), name, "crop")
    for grey in (250, 251, 250):
        add(jpeg(Image.new("RGB", (90, 90), (grey,) * 3)), f"flat {grey}", "flat")
    for seed in range(30):
        add(jpeg(noise(seed)), f"noise {seed}", "alone")
    array_record.write(rows, folder / "photos.arrayrecord")
    return str(folder / "*.arrayrecord"), what


def test_dedup(photos, tmp_path):
    pattern, what = photos
    summary = start("dedup", pattern, f"--output={tmp_path / 'one'}")
    lines = removed(tmp_path / "one")
    assert [v["index"] for v in lines] == sorted(v["index"] for v in lines)
    gone = {v["index"]: v for v in lines}
    for index, (group, _) in enumerate(what):
        place = index % 5
        if index < 30:  # q60 is the first of the largest ones
            assert (index in gone) == (place != 1), what[index]
            best = index - place + 1
        else:
            assert (index in gone) == (index == 32), what[index]
            best = 30
        if index in gone:
            assert gone[index]["of"] == {"source": pattern, "index": best}
            assert what[best][0] == group
            exact = index == 32 or place == 3
            assert gone[index]["reason"] == ("exact copy" if exact else "near duplicate")
            assert gone[index].get("distance", 0) <= 4
    assert summary["removed"] == {"exact copy": 7, "near duplicate": 18}
    assert summary["kept"] == len(what) - 25
    assert summary["counts"]["groups of duplicates"] == 7
    assert summary["counts"]["largest group"] == 5
    assert summary["counts"]["images without a perceptual hash"] == 2
    # Other workers and bundles, the same bytes; and what is left has nothing twice.
    start("dedup", pattern, f"--output={tmp_path / 'two'}", *TWO)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    kept = tmp_path / "kept"
    start("reshard", pattern, f"--output={kept}", f"--remove={tmp_path / 'one'}", "--shards=2")
    again = start("dedup", f"{kept}/*.arrayrecord", f"--output={tmp_path / 'again'}")
    assert again["records"] == again["kept"] == len(what) - 25


def test_dedup_over_two_sources_and_without_near_ones(photos, tmp_path):
    pattern, what = photos
    other = tmp_path / "other.arrayrecord"
    rows = make_source({"kind": "array_record", "files": pattern}, "photos")
    array_record.write([rows[i] for i in (40, 1, 35)], other)
    summary = start("dedup", pattern, other, f"--output={tmp_path / 'd'}", "--distance=0")
    lines = removed(tmp_path / "d")
    assert summary["records"] == len(what) + 3
    from_other = {v["index"]: v for v in lines if v["source"] == str(other)}
    assert {i: v["of"]["index"] for i, v in from_other.items()} == {0: 40, 1: 1, 2: 35}
    assert all(v["of"]["source"] == pattern for v in lines)
    assert all(v.get("distance", 0) == 0 for v in lines)
    assert [p.name for p in sorted((tmp_path / "d").glob("removed-*"))] == [
        "removed-00000-of-00002.jsonl",
        "removed-00001-of-00002.jsonl",
    ]


def test_filter_counts_by_condition(plain, tmp_path):
    conditions = ["--filter=values={'language': ('en', 'de')}", "--filter=min_words=1"]
    conditions += ["--filter=ranges={'score': (0.3, None)}", "--filter=min_side=64"]
    conditions += ["--filter=max_aspect=2.2"]
    summary = start("filter", plain, f"--output={tmp_path / 'one'}", *conditions)

    def reason(i):
        if i % 3 == 2:
            return "filter: values of 'language'"
        if i % 3 == 0:
            return "filter: min_words"
        if i % 7 / 7 < 0.3:
            return "filter: ranges of 'score'"
        return "filter: max_aspect" if (64 + 8 * (i % 12)) / 64 > 2.2 else None

    expected = [(i, reason(i)) for i in range(2500) if reason(i)]
    assert [(v["index"], v["reason"]) for v in removed(tmp_path / "one")] == expected
    assert summary["removed"] == Counter(r for _, r in expected)
    assert summary["kept"] == 2500 - len(expected)
    start("filter", plain, f"--output={tmp_path / 'two'}", *conditions, "--direct_num_workers=2")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_set_of_values_is_written_in_order(plain, tmp_path):
    assert as_json({"a": ({"b", "c", "a"}, frozenset({2, 1}))}) == {"a": [["a", "b", "c"], [1, 2]]}
    values = "--filter=values={'language': {'fr', 'en', 'de'}}"
    summary = start("filter", plain, f"--output={tmp_path / 'f'}", values)
    assert list(summary["filters"].values()) == [{"values": {"language": ["de", "en", "fr"]}}]
    flags = [plain, f"--output={tmp_path / 'r'}", "--shards=1", "--drop=score", "--drop=score"]
    summary = start("reshard", *flags, values)
    assert summary["plan"]["filter"] == {"values": {"language": ["de", "en", "fr"]}}
    assert summary["plan"]["drop"] == ["score"]
    assert summary["dropped"] == {"score": 2500}


def test_counts_are_beam_metrics(plain, tmp_path):
    from tools.beam import filtering

    job = common.open_job([named(plain)], str(tmp_path / "out"))
    result = running.run(lambda p: filtering.build(p, job, ["min_words=1"]), [])
    counters = result.metrics().query()["counters"]
    found = {c.key.metric.name: c.result for c in counters if c.key.metric.namespace == "clipjax"}
    assert found == {"filter: min_words": 834}


@pytest.mark.parametrize("to", ["array_record", "tars", "parquet"])
@pytest.mark.parametrize("shuffle", [None, 5])
def test_reshard_writes_what_convert_writes(plain, to, shuffle, tmp_path):
    flags = [f"--shuffle={shuffle}"] if shuffle is not None else []
    summary = start(
        "reshard",
        plain,
        f"--output={tmp_path / 'beam'}",
        f"--to={to}",
        "--shards=6",
        "--filter=max_aspect=2.0",
        "--drop=score",
        *flags,
    )
    convert(
        named(plain),
        str(tmp_path / "plain"),
        to,
        shards=6,
        filters=["max_aspect=2.0"],
        drop=["score"],
        shuffle=shuffle,
    )
    ours, theirs = files(tmp_path / "beam"), files(tmp_path / "plain")
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if ours[n] != theirs[n]} == {"summary.json"}
    assert json.loads(theirs["summary.json"])["written"] == summary["written"]
    assert summary["left_out"] == {"filter: max_aspect": sum(i % 12 > 8 for i in range(2500))}
    assert summary["dropped"] == {"score": summary["written"]}


def test_reshard_loses_and_repeats_nothing(plain, tmp_path):
    start("filter", plain, f"--output={tmp_path / 'f'}", "--filter=values={'language': 'en'}")
    flags = [plain, f"--remove={tmp_path / 'f'}", "--shuffle=0", "--shard-size=200kB"]
    summary = start("reshard", f"--output={tmp_path / 'one'}", *flags)
    start("reshard", f"--output={tmp_path / 'two'}", *flags, *TWO)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one == two
    assert len(one) == len(summary["shards"]) + 1 > 4
    source = make_source(
        {"kind": "array_record", "files": f"{tmp_path / 'one'}/*.arrayrecord"}, "new"
    )
    numbers = [source[i]["number"] for i in range(len(source))]
    assert sorted(numbers) == list(range(0, 2500, 3))
    assert numbers != sorted(numbers)
    assert summary["left_out"] == {"in a list of --remove": 2500 - len(numbers)}


class Gone(Hostile):
    """A source whose disk has gone away."""

    def __getitem__(self, index):
        raise OSError("the disk is gone")


@pytest.mark.parametrize("job", [["filter", "--filter=min_side=1"], ["reshard", "--shards=1"]])
def test_a_file_that_cannot_be_read_is_said(job, tmp_path):
    with pytest.raises(
        UserError, match=r"^Record \d+ cannot be read \(OSError: the disk is gone\)"
    ):
        start(*job, "tests.test_beam:Gone", f"--output={tmp_path / 'out'}")


def test_bad_records_are_counted_and_never_fatal(tmp_path):
    broken = {"json is broken": 4, "cannot be read (KeyError)": 4}
    undecodable = {
        "image format not recognised": 4,
        "image is truncated or broken": 4,
        "there is no image": 4,
    }
    summary = start("dedup", "tests.test_beam:Hostile", f"--output={tmp_path / 'd'}")
    assert summary["removed"] == broken | undecodable
    assert [v["index"] for v in removed(tmp_path / "d")] == [i for i in range(24) if i % 6]
    summary = start(
        "filter", "tests.test_beam:Hostile", f"--output={tmp_path / 'f'}", "--filter=min_side=10"
    )
    sizes = {k: n for k, n in undecodable.items() if "truncated" not in k}
    assert summary["removed"] == broken | sizes
    summary = start(
        "reshard",
        "tests.test_beam:Hostile",
        f"--output={tmp_path / 'r'}",
        "--shards=2",
        "--shuffle=1",
    )
    assert summary["left_out"] == broken | {"there is no image": 4}  # images are not decoded
    assert summary["written"] == 12


def test_remote_output(plain, tmp_path):
    import fsspec

    folder = f"memory://beam/{tmp_path.name}"
    start("filter", plain, f"--output={folder}/f", "--filter=min_words=2")
    flags = [plain, "--to=tars", "--shards=3"]
    start("reshard", *flags, f"--output={folder}/r", f"--remove={folder}/f")
    start("reshard", *flags, f"--output={tmp_path / 'r'}", f"--remove={folder}/f")
    system = fsspec.filesystem("memory")
    remote = {
        p.rpartition("/")[2]: system.cat_file(p) for p in system.ls(f"{folder}/r", detail=False)
    }
    assert remote == files(tmp_path / "r")
    with pytest.raises(UserError, match="holds something already"):
        start("filter", plain, f"--output={folder}/f", "--filter=min_words=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dedup", "PLAIN", "--output=FULL"], "holds something already; name another --output"),
        (["dedup", "PLAIN", "--output=FULL/file"], "holds something already"),
        (["dedup", "PLAIN", "--output=NEW", "--distance=11"], "--distance must be from 0 to 10"),
        (["dedup", "PLAIN", "PLAIN", "--output=NEW"], "named more than once"),
        (["dedup", "--output=NEW"], "Name the data by SOURCE"),
        (["dedup", "NEW/*.tar", "--output=NEW"], "There is no tar"),
        (["filter", "PLAIN", "--output=NEW"], "No condition is given"),
        (["filter", "PLAIN", "--output=NEW", "--filter=min_sides=3"], "did you mean 'min_side'"),
        (["filter", "PLAIN", "--output=NEW", "--filters=min_side=3"], "no flag '--filters"),
        (["filter", "PLAIN", "--output=NEW", "--direct_num_worker=3"], "'--direct_num_workers'"),
        (["filter", "PLAIN", "--output=NEW", "--direct_num_workers=x"], "does not take"),
        (["filter", "PLAIN", "--output=NEW", "--runner=Nobody"], "runner 'Nobody' cannot be had"),
        (["reshard", "PLAIN", "--output=NEW"], "one of --shards and --shard-size"),
        (["reshard", "PLAIN", "--output=NEW", "--shards=3000"], "cannot fill 3,000 shards"),
        (["reshard", "PLAIN", "--output=NEW", "--shards=2", "--to=tar"], "did you mean 'tars'"),
        (["reshard", "PLAIN", "--output=NEW", "--shards=2", "--remove=FULL"], "no output of a"),
        (["reshard", "PLAIN", "--output=NEW", "--shards=2", "--drop=image"], "cannot be dropped"),
    ],
)
def test_mistakes(plain, arguments, message, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    words = {"PLAIN": plain, "FULL": str(tmp_path / "full"), "NEW": str(tmp_path / "new")}
    for word, value in words.items():
        arguments = [a.replace(word, value) for a in arguments]
    with pytest.raises(SystemExit) as status:
        corpus.main(arguments)
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_a_list_of_other_data(plain, photos, tmp_path):
    start("filter", photos[0], f"--output={tmp_path / 'f'}", "--filter=min_side=10")
    flags = [plain, f"--output={tmp_path / 'r'}", f"--remove={tmp_path / 'f'}", "--shards=2"]
    with pytest.raises(UserError, match="is not about"):
        start("reshard", *flags)
    summary = json.loads((tmp_path / "f" / "summary.json").read_text())
    summary["sources"] = {plain: 7}
    (tmp_path / "f" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="is about 7 records"):
        start("reshard", *flags)


def test_what_a_worker_raises_is_one_sentence(tmp_path):
    # The columns are those of a sample, which this record is not in.
    late = Shuffle([600], [1.0], 0).draw(599, 0)[1]
    rows = [{"image": jpeg(noise(i % 3)), "text": ["a"], "language": "en"} for i in range(600)]
    rows[late]["extra"] = 1
    array_record.write(rows, tmp_path / "a.arrayrecord")
    out = tmp_path / "r"
    flags = [tmp_path / "a.arrayrecord", f"--output={out}", "--to=parquet", "--shards=2"]
    with pytest.raises(UserError) as error:
        start("reshard", *flags)
    assert str(error.value).startswith("Parquet cannot hold the field 'extra'")
    assert "\n" not in str(error.value)
    assert {p.name for p in out.iterdir()} <= {f"{1 - late // 300:05d}.parquet"}


def test_without_beam(monkeypatch, plain, tmp_path):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "common")
    with pytest.raises(UserError, match=r"pip install 'clipjax\[beam\]'"):
        start("dedup", plain, f"--output={tmp_path / 'd'}")
