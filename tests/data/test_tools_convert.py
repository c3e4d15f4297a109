"""`clipjax data convert`: from every layout to every other one, interrupted, in several processes, and refused."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipjax.cli import main
from clipjax.data.images import decode
from clipjax.data.sources import array_record, make_source
from clipjax.data.sources.tars import Tars
from clipjax.data.workers import each
from clipjax.errors import UserError


def jpeg(value):
    file = io.BytesIO()
    Image.new("RGB", (20 + value % 7, 16), (value, 90, 30)).save(file, "JPEG")
    return file.getvalue()


def records(count=50):
    """Raw records of every kind of field; each is recognised by `number`."""
    for i in range(count):
        yield {
            "image": jpeg(i),
            "text": [f"number {i}", "né & <b>"][: 1 + i % 2],
            "language": "de" if i % 5 == 0 else "en",
            "boxes": np.array([[0, 0.1, 0.5, i / 100 + 0.2]] * (i % 3), np.float32).reshape(-1, 4),
            "region_text": [["a", f"r{i}"]] * (i % 3),
            "similarity": i / 7,
            "number": i,
            "caption": "not this one",
            "url": None if i % 4 == 0 else f"http://x/{i}",
        }


@pytest.fixture
def shards(tmp_path):
    """Patterns and settings of the same 50 records in ArrayRecord files."""
    folder = tmp_path / "in"
    folder.mkdir()
    made = list(records())
    array_record.write(made[:30], folder / "a.arrayrecord")
    array_record.write(made[30:], folder / "b.arrayrecord")
    return str(folder / "*.arrayrecord")


def convert(*arguments):
    return main(["data", "convert", *map(str, arguments)])


def source_of(folder, to):
    kind = {"array_record": "files", "tars": "shards", "parquet": "files"}
    endings = {"array_record": "arrayrecord", "tars": "tar", "parquet": "parquet"}
    return make_source({"kind": to, kind[to]: f"{folder}/*.{endings[to]}"}, "mine")


def pattern_of(folder, to):
    return f"{folder}/*." + {"array_record": "arrayrecord", "tars": "tar"}.get(to, to)


def digest(folder):
    """Names and contents of a directory, the summary left out."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.name != "summary.json"
    }


def same(found, want):
    assert found["image"] == want["image"]
    for name in ("text", "language", "similarity", "number", "region_text", "url", "caption"):
        assert found[name] == want[name], name
    boxes = np.array(found["boxes"], np.float64).reshape(-1, 4)
    np.testing.assert_array_equal(boxes, want["boxes"].astype(np.float64))


@pytest.mark.parametrize("second", ["array_record", "tars", "parquet"])
@pytest.mark.parametrize("first", ["array_record", "tars", "parquet"])
def test_all_layouts_hold_the_same(shards, tmp_path, first, second):
    if "parquet" in (first, second):
        pytest.importorskip("pyarrow")
    assert convert(shards, f"--output={tmp_path / '1'}", "--to", first, "--shards=3") == 0
    step = pattern_of(tmp_path / "1", first)
    assert convert(step, f"--output={tmp_path / '2'}", "--to", second, "--shards=2") == 0
    source = source_of(tmp_path / "2", second)
    assert len(source) == 50
    for i, want in enumerate(records()):
        same(source[i], want)
    summary = json.loads((tmp_path / "2" / "summary.json").read_text())
    assert summary["written"] == 50
    assert summary["left_out"] == {}
    assert [s["records"] for s in summary["shards"]] == [25, 25]
    assert summary["plan"]["source"]["kind"] == first


def test_other_programs_read_the_tars(shards, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    assert convert(shards, f"--output={tmp_path / 'o'}", "--to=tars", "--shards=1") == 0
    with tarfile.open(tmp_path / "o" / "00000.tar") as tar:
        member = tar.next()
        assert (member.name, member.mtime, member.uid, member.uname) == (
            "00000000000.jpg",
            0,
            0,
            "",
        )
    found = list(webdataset.WebDataset(str(tmp_path / "o" / "00000.tar"), shardshuffle=False))
    assert len(found) == 50
    assert found[4]["txt"] == b"number 4"
    assert json.loads(found[4]["json"])["number"] == 4
    assert "txt" not in found[5]  # two captions
    assert json.loads(found[5]["json"])["text"] == ["number 5", "né & <b>"]


def test_shuffled_whole_and_the_same_in_two_processes(shards, tmp_path):
    plain = ["--shards=4", "--shuffle=5"]
    assert convert(shards, f"--output={tmp_path / 'a'}", *plain) == 0
    assert convert(shards, f"--output={tmp_path / 'b'}", *plain, "--workers=2") == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    source = source_of(tmp_path / "a", "array_record")
    numbers = [source[i]["number"] for i in range(50)]
    assert sorted(numbers) == list(range(50))
    assert sum(abs(a - b) for a, b in zip(numbers, range(50), strict=True)) > 300
    assert convert(shards, f"--output={tmp_path / 'c'}", "--shards=4", "--shuffle=6") == 0
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


class Slow:
    """Records of `records`, each a while later, so that there is time to be killed."""

    def __init__(self, count=32, wait=0.02):
        self._records, self._wait = list(records(count)), wait

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        time.sleep(self._wait)
        return self._records[index]


def test_a_worker_that_dies():
    with pytest.raises(UserError, match="A worker process has died"):
        list(each(os._exit, [3, 3, 3], 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "workers"), [("array_record", 1), ("array_record", 2), ("tars", 2), ("parquet", 1)]
)
def test_killed_in_the_middle(tmp_path, to, workers):
    if to == "parquet":
        pytest.importorskip("pyarrow")
    arguments = [
        "tests.data.test_tools_convert:Slow",
        "--shards=8",
        f"--to={to}",
        f"--workers={workers}",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "clipjax.cli", "data", "convert", *arguments]
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, f"--output={folder}"], env=environment, stdout=subprocess.DEVNULL
    )
    deadline, progress = time.monotonic() + 60, folder / "progress.jsonl"
    while not (progress.is_file() and progress.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # workers notice
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix != ".part"}
    whole = [json.loads(line)["files"][0] for line in progress.read_bytes().splitlines()[:-1]]
    again = subprocess.run(
        [*command, f"--output={folder}"], env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "of 8 shards are there already." in again.stdout
    for name in whole:
        assert (folder / name).stat().st_mtime_ns == before[name]
    done = subprocess.run([*command, f"--output={tmp_path / 'whole'}"], env=environment)
    assert done.returncode == 0
    assert digest(folder) == digest(tmp_path / "whole")
    assert (folder / "summary.json").read_bytes() == (
        tmp_path / "whole" / "summary.json"
    ).read_bytes()


def test_lost_and_cut_shards_are_written_again(shards, tmp_path, capsys):
    folder = tmp_path / "o"
    assert convert(shards, f"--output={folder}", "--to=tars", "--shards=4") == 0
    want = digest(folder)
    (folder / "00001.tar").unlink()
    (folder / "00002.tar").write_bytes(b"short")
    (folder / "00003.tar.index").unlink()
    capsys.readouterr()
    assert convert(shards, f"--output={folder}", "--to=tars", "--shards=4") == 0
    assert "1 of 4 shards are there already." in capsys.readouterr().out
    assert digest(folder) == want
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix == ".tar"}
    assert convert(shards, f"--output={folder}", "--to=tars", "--shards=4") == 0
    assert before == {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix == ".tar"}


def test_filters_and_bad_records_are_counted(tmp_path, monkeypatch, capsys):
    made = list(records(40))
    made[3]["image"] = b""
    made[4]["text"] = ["\ud800"]
    made[5]["image"] = np.zeros((4, 4, 3), np.float32)
    made[6]["image"] = 7
    module = types.ModuleType("pairs_of_test")
    module.Pairs = lambda: made
    monkeypatch.setitem(sys.modules, "pairs_of_test", module)
    out = tmp_path / "o"
    arguments = ["--filter", "ranges={'similarity': (2.0, None)}", "--filter", "min_words=2"]
    assert convert("pairs_of_test:Pairs", f"--output={out}", "--shards=4", "--limit=30") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["written"] == 26
    assert summary["left_out"] == {
        "image has zero bytes": 1,
        "text is not UTF-8": 1,
        "image array is not uint8 [H,W,3|4]": 1,
        "image is neither bytes, array nor image": 1,
    }
    assert "1 left out: text is not UTF-8" in capsys.readouterr().out
    out = tmp_path / "p"
    # Numbers 0 to 13 have less than 2.0; the first shards are empty.
    assert convert("pairs_of_test:Pairs", f"--output={out}", "--shards=8", *arguments) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["written"] == 26
    assert summary["left_out"] == {"turned down by the filter": 14}
    assert [s["records"] for s in summary["shards"]] == [0, 0, 1, 5, 5, 5, 5, 5]
    assert len(source_of(out, "array_record")) == 26
    for to in ("tars", "parquet"):
        folder = tmp_path / to
        assert (
            convert(
                "pairs_of_test:Pairs", f"--output={folder}", "--shards=8", f"--to={to}", *arguments
            )
            == 0
        )
        assert len(source_of(folder, to)) == 26
    capsys.readouterr()
    nothing = ["--filter", "min_side=2000"]
    assert convert("pairs_of_test:Pairs", f"--output={tmp_path / 'n'}", *nothing) == 2
    assert "None of 40 records" in capsys.readouterr().err


def test_arrays_become_png_or_stay(tmp_path):
    assert convert("drawings", f"--output={tmp_path / 'a'}", "--limit=30", "--shards=2") == 0
    assert (
        convert("drawings", f"--output={tmp_path / 't'}", "--limit=30", "--shards=2", "--to=tars")
        == 0
    )
    drawings = make_source({"kind": "drawings"}, "drawings")
    kept, encoded = source_of(tmp_path / "a", "array_record"), source_of(tmp_path / "t", "tars")
    for i in (0, 13, 29):
        want = drawings[i]
        np.testing.assert_array_equal(kept[i]["image"][0], want["image"][0])
        np.testing.assert_array_equal(np.asarray(decode(encoded[i]["image"])), want["image"][0])
        for name in ("text", "name", "keywords", "category", "concept", "style"):
            assert kept[i][name] == want[name]
            assert encoded[i][name] == want[name]


def test_what_a_layout_cannot_hold_is_refused(tmp_path, capsys):
    scenes = ["scenes", "--set", "backgrounds=plain", "--limit=6", f"--output={tmp_path / 's'}"]
    for to, name in (("parquet", "Parquet"), ("tars", "A tar")):
        assert convert(*scenes, f"--to={to}") == 2
        said = capsys.readouterr().err
        assert f"{name} cannot hold the field 'masks', which is an array of 3 dimensions" in said
        assert "--drop masks" in said
    assert not (tmp_path / "s").exists()
    assert convert(*scenes, "--to=tars", "--drop=masks") == 0
    assert "6 records lost their field 'masks'" in capsys.readouterr().out
    assert "masks" not in source_of(tmp_path / "s", "tars")[0]
    concepts = ["drawings", "--set", "group=concept", "--limit=5"]
    assert convert(*concepts, f"--output={tmp_path / 'c'}", "--to=tars") == 2
    assert "'image' of records with several images" in capsys.readouterr().err
    assert convert(*concepts, f"--output={tmp_path / 'c'}") == 0
    assert len(source_of(tmp_path / "c", "array_record")[0]["image"]) > 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("raw", b"1", "has a value of the type bytes"),
        ("meta", {"a": 1}, "has a value of the type dict"),
        ("n", 2**70, "has a number of more than 64 bits"),
        ("txt", "another caption", "would be taken for the image or the caption"),
        ("jpg", "x", "would be taken for the image or the caption"),
        ("thing", object(), "has a value of the type object"),
    ],
)
def test_fields_that_parquet_cannot_hold(field, value, words):
    from clipjax.data.sources import parquet_writer

    record = next(records())
    with pytest.raises(UserError, match=f"Parquet cannot hold the field '{field}', which {words}"):
        parquet_writer.fit(record | {field: value})


def test_columns_of_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    from clipjax.data.sources import parquet_writer

    rows = [parquet_writer.fit(r) for r in records(6)]
    schema = parquet_writer.schema_of(rows)
    for row, words in (
        (rows[0] | {"rare": 1}, "'rare', which only few records have"),
        (rows[0] | {"number": "x"}, "'number', which has values that do not fit into its column"),
    ):
        with pytest.raises(UserError, match=words):
            parquet_writer.write([row], tmp_path / "x.parquet", schema)
        assert not (tmp_path / "x.parquet").exists()
    with pytest.raises(UserError, match="'number', which has values that do not fit into one"):
        parquet_writer.schema_of([*rows, rows[0] | {"number": "x"}])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shards=3", "--hosts=2"], "choose --shards=2 or 4"),
        (["--shards=2", "--hosts=4"], "choose --shards=4"),
        (["--shards=60"], "50 records cannot fill 60 shards"),
        (["--hosts=80"], "50 records cannot fill 80 shards"),
        (["--shards=0"], "at least 1"),
        (["--shards=2", "--shard-size=1MB"], "not both"),
        (["--shard-size=big"], "--shard-size must be such as 256MB"),
        (["--to=tar"], "--to cannot be 'tar' (did you mean 'tars'?)"),
        (["--limit=0"], "--limit must be at least 1"),
        (["--workers=0"], "--workers must be at least 1"),
        (["--drop=image"], "'image' cannot be dropped"),
        (["--filter=min_sid=3"], "no setting 'min_sid' (did you mean 'min_side'?)"),
        (["--filter=min_side=3", "--filter=min_side=4"], "--filter min_side is given more than"),
        (["--filter=3"], "--filter needs NAME=VALUE"),
        (["--output=gs://bucket/x"], "must be a local directory"),
    ],
)
def test_mistakes(shards, tmp_path, capsys, arguments, words):
    assert convert(shards, f"--output={tmp_path / 'o'}", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_directories_of_something_else(shards, tmp_path, capsys):
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert convert(shards, f"--output={folder}") == 2
    assert "not a directory that clipjax data convert has begun" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]
    assert convert(shards, f"--output={folder / 'mine.txt'}") == 2
    folder = tmp_path / "p"
    assert convert(shards, f"--output={folder}", "--shards=2") == 0
    want = digest(folder)
    capsys.readouterr()
    for other in (["--shards=3"], ["--shards=2", "--shuffle=1"], ["--shards=2", "--drop=url"]):
        assert convert(shards, f"--output={folder}", *other) == 2
        assert "holds shards of other data or arguments" in capsys.readouterr().err
    made = list(records())
    made[7]["similarity"] = 0.5
    array_record.write(made[:30], shards.replace("*", "a"))
    assert convert(shards, f"--output={folder}", "--shards=2") == 2
    assert "(different: sample)" in capsys.readouterr().err
    assert digest(folder) == want


def test_shards_suit_the_hosts(shards, tmp_path, capsys):
    one = sum(len(array_record.encode(r)) for r in records()) // 50
    size = ["--shard-size", str(one * 10)]
    assert convert(shards, f"--output={tmp_path / 'a'}", *size) == 0
    assert len(list((tmp_path / "a").glob("*.arrayrecord"))) == 5
    assert convert(shards, f"--output={tmp_path / 'b'}", *size, "--hosts=4") == 0
    assert len(list((tmp_path / "b").glob("*.arrayrecord"))) == 8
    assert "8 shard(s), a multiple of 4 hosts" in capsys.readouterr().out
    assert convert(shards, f"--output={tmp_path / 'c'}", "--hosts=7") == 0
    assert len(list((tmp_path / "c").glob("*.arrayrecord"))) == 7


def test_captions_of_tars_survive(tmp_path):
    """The txt of a tar is in `text` already; a second reading must not prefer it."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            ("../x.jpg", jpeg(1)),
            ("../x.txt", b"first"),
            ("../x.json", b'{"caption": "second", "score": 3}'),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert main(["data", "index", str(tmp_path / "a.tar")]) == 0
    both = ["--set", "text=('txt', 'caption')"]
    for to in ("array_record", "tars", "parquet"):
        folder = tmp_path / to
        assert convert(tmp_path / "a.tar", *both, f"--output={folder}", f"--to={to}") == 0
        found = source_of(folder, to)[0]
        assert found["text"] == ["first", "second"]
        assert found["score"] == 3
        assert "txt" not in found
    assert Tars(str(tmp_path / "tars" / "*.tar"))[0]["image"] == jpeg(1)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.jpg"))
    assert names == []


def test_damaged_sources_are_counted(shards, tmp_path):
    path = Path(shards.replace("*", "a"))
    data = bytearray(path.read_bytes())
    place = data.find(b"number 20")
    data[place : place + 4] = b"NNNN"
    path.write_bytes(data)
    assert convert(shards, f"--output={tmp_path / 'o'}", "--shards=2") == 0
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["left_out"] == {"file is damaged here": 1}
    assert summary["written"] == 49
