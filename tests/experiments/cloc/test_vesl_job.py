"""VESL's job: regions for a data set, whatever the workers, after any kill, and a training run reads them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apache_beam")
pytest.importorskip("textblob")
ROOT = Path(__file__).resolve().parents[3]
COMMAND = ("-m", "experiments.cloc.vesl.job")

from clipjax.data.commands.targets import make_target  # noqa: E402
from clipjax.data.sources import array_record, make_source  # noqa: E402
from clipjax.defaults import base_config  # noqa: E402
from clipjax.errors import UserError  # noqa: E402
from experiments.cloc.score_vesl import row, score_folder  # noqa: E402
from experiments.cloc.vesl import job as vesl  # noqa: E402
from experiments.cloc.vesl.captioners import FieldCaptioner  # noqa: E402
from experiments.cloc.vesl.taggers import TextBlobTagger  # noqa: E402
from tests.experiments.cloc import tiny_vesl  # noqa: E402
from tests.tiny_images import jpeg, noise  # noqa: E402
from tools.beam import common, corpus  # noqa: E402

PARTS = "tests.experiments.cloc.tiny_vesl"
COUNT = 90
NOISE = ["--detector.miss=0.1", "--detector.jitter=0.05", "--detector.score_noise=0.5"]
ARGUMENTS = ["--detector=truth", "--shards=6", "--batch=4"]
TWO = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    settings = {"size": 72, "backgrounds": "plain", "jpeg": 90}
    source = make_source({"kind": "scenes", "length": COUNT, **settings}, "scenes")
    array_record.write((source[i] for i in range(COUNT)), folder / "all.arrayrecord")
    return str(folder / "all.arrayrecord")


def start(*arguments):
    args, flags = vesl.make_parser().parse_known_args([str(a) for a in arguments])
    return vesl.start(args, flags)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def records(folder):
    source = make_source({"kind": "array_record", "files": f"{folder}/*.arrayrecord"}, "labels")
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def labels(scenes, tmp_path_factory):
    """Labels without noise, and the job's summary."""
    folder = tmp_path_factory.mktemp("labels") / "out"
    return folder, start(scenes, f"--output={folder}", *ARGUMENTS, "--drop=masks")


def test_records_keep_everything_and_get_regions(scenes, labels):
    folder, summary = labels
    found, source = records(folder), make_source({"kind": "array_record", "files": scenes}, "s")
    assert len(found) == COUNT == summary["written"] == summary["plan"]["records"]
    for index, record in enumerate(found):
        given = source[index]
        assert record["image"] == given["image"]
        assert record["text"] == list(given["text"])
        assert "masks" not in record
        for name in set(given) - {"masks", "boxes", "region_text"}:
            np.testing.assert_equal(record[name], given[name])
        np.testing.assert_equal(record["source_boxes"], given["boxes"])
        m = len(record["region_text"])
        assert record["boxes"].shape == (m, 4)
        assert record["boxes"].dtype == record["region_scores"].dtype == np.float32
        assert (record["region_scores"] > 0.1).all()
        assert len(record["region_scores"]) == m
    counts = summary["counts"]
    assert counts["regions"] == sum(len(r["region_text"]) for r in found)
    assert counts["phrases"] == sum(len(r["phrases"]) for r in found)
    assert counts["captions"] == sum(len(r["text"]) for r in found)
    assert summary["dropped"] == {"masks": COUNT}
    assert summary["left_out"] == {}
    assert sorted(files(folder)) == [*(f"{n:05d}.arrayrecord" for n in range(6)), "summary.json"]
    totals = score_folder(folder)
    assert totals["head"].precision == 1
    assert totals["name"].recall <= totals["head"].recall < 1
    assert row(folder, totals).startswith("| no noise |")


def test_batches_and_shards_do_not_matter(scenes, labels, tmp_path):
    start(scenes, f"--output={tmp_path}", *ARGUMENTS[:1], "--shards=1", "--batch=32")
    for one, other in zip(records(labels[0]), records(tmp_path), strict=True):
        del other["masks"]
        np.testing.assert_equal(one, other)


@pytest.mark.slow
def test_workers_need_neither_this_folder_nor_the_experiment(scenes, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    start(scenes, f"--output={tmp_path / 'out'}", *ARGUMENTS, "--drop=masks", *TWO)
    assert files(tmp_path / "out") == files(labels[0])


def test_filter_remove_phrases_and_config(tmp_path):
    rows = [numbered(i) | {"language": ("en", "de")[i % 2]} for i in range(12)]
    data = tmp_path / "data.arrayrecord"
    array_record.write(rows, data)
    config = tmp_path / "config.py"
    config.write_text(
        "from clipjax.defaults import base_config\n\n\n"
        "def get_config():\n"
        "    config = base_config()\n"
        f"    config.data.sources = {{'web': {{'kind': 'array_record', 'files': {str(data)!r}}}}}\n"
        "    return config\n"
    )
    data = [f"--config={config}", "--source=web"]
    args, flags = corpus.make_parser().parse_known_args(
        ["filter", *data, f"--output={tmp_path / 'few'}", "--filter=ranges={'number': (4, None)}"]
    )
    corpus.start(args, flags)
    flags = [
        *data,
        f"--output={tmp_path / 'out'}",
        "--detector=tests.experiments.cloc.tiny_vesl:Fussy",
        "--shards=2",
    ]
    flags += ["--filter=values={'language': {'en', 'fr'}}", f"--remove={tmp_path / 'few'}"]
    summary = start(*flags, "--phrases=1")
    assert [r["number"] for r in records(tmp_path / "out")] == [4, 6, 8, 10]
    assert summary["left_out"] == {
        "filter: values of 'language'": 4,
        "in a list of --remove": 4,
    }
    assert summary["plan"]["filter"] == {"values": {"language": ["en", "fr"]}}
    assert all(r["phrases"] == ["a cat"] for r in records(tmp_path / "out"))
    assert start(*flags, "--phrases=1") == summary
    with pytest.raises(UserError, match=r"different: phrases\)"):
        start(*flags)
    # Another list in the same place is noticed.
    file = tmp_path / "few" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kept": 7}))
    with pytest.raises(UserError, match=r"different: remove\)"):
        start(*flags, "--phrases=1")


def numbered(number):
    """A record of one red cat and one dog."""
    box = np.array([[0, 0, 0.5, 1]], np.float32)
    facts = {"boxes": box, "region_text": [["cat"]], "names": ["cat"], "number": number}
    return {"image": jpeg(noise(number)), "text": ["a cat and a dog"], "language": "en"} | facts


def test_other_captions_in_the_same_file_are_noticed(tmp_path):
    array_record.write([numbered(i) for i in range(4)], tmp_path / "data.arrayrecord")
    captions = tmp_path / "captions.csv"
    captions.write_text("number,text\n" + "".join(f"{i},a cat\n" for i in range(4)))
    flags = [tmp_path / "data.arrayrecord", f"--output={tmp_path / 'out'}", *ARGUMENTS[::2]]
    flags += ["--shards=2", "--captioner=file", "--captioner.key=number"]
    flags.append(f"--captioner.file={captions}")
    summary = start(*flags)
    assert start(*flags) == summary
    captions.write_text(captions.read_text().replace("cat", "dog"))
    with pytest.raises(UserError, match=r"different: model_files\)"):
        start(*flags)


def test_a_model_that_falls_over_at_the_end_of_a_shard_loses_nothing(tmp_path, monkeypatch):
    bad = numbered(30) | {"image": b"no image"}
    array_record.write([*map(numbered, range(30)), bad], tmp_path / "data.arrayrecord")
    flags = [tmp_path / "data.arrayrecord", f"--output={tmp_path / 'out'}", "--shards=2"]
    flags += ["--detector=tests.experiments.cloc.tiny_vesl:Fragile", "--batch=4"]
    monkeypatch.setattr(tiny_vesl.Fragile, "at", 22)
    with pytest.raises(UserError, match=r"The last 8 records of shard 1 have failed.*\(detector f"):
        start(*flags)
    assert not (tmp_path / "out" / "00001.arrayrecord").exists()
    monkeypatch.setattr(tiny_vesl.Fragile, "at", 30)
    summary = start(*flags)
    assert summary["left_out"] == {"image format not recognised": 1}
    assert summary["written"] == 30
    monkeypatch.setattr(tiny_vesl.Fragile, "at", 23)  # seven are no reason
    assert start(*flags[:1], f"--output={tmp_path / 'seven'}", *flags[2:])["written"] == 23


def test_a_disk_that_fails_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_vesl.Gone, "looks", 0)
    flags = ["--detector=tests.experiments.cloc.tiny_vesl:Fussy", "--shards=1"]
    with pytest.raises(UserError, match=r"^Record 0 cannot be read \(OSError: the disk is gone\)"):
        start("tests.experiments.cloc.tiny_vesl:Gone", f"--output={tmp_path / 'out'}", *flags)


def test_a_shard_that_cannot_be_noted_is_said(tmp_path):
    from experiments.cloc.vesl import label_regions

    data = tmp_path / "data.arrayrecord"
    array_record.write([numbered(0)], data)
    entries = {"data": {"kind": "array_record", "files": str(data)}}
    job = common.Job(entries, {"data": 1}, str(tmp_path))
    models = [FieldCaptioner(), TextBlobTagger(), tiny_vesl.Fussy()]
    plan = label_regions.make_plan(
        job, {}, models[0], threshold=0.1, phrases=20, batch=2, shards=1, drop=["names", "names"]
    )
    assert plan["drop"] == ["names"]
    work = label_regions.LabelShard(plan, make_target("array_record"), str(tmp_path), models)
    work.setup()
    with pytest.raises(UserError, match=r"shard '00000\.arrayrecord' cannot be written"):
        list(work.process(0))  # there is no folder `progress`


def test_what_is_dropped_need_not_fit_and_takes_no_room(tmp_path):
    flags = [f"{PARTS}:Odd", f"--detector={PARTS}:Fussy", "--shard-size=100kB"]
    with pytest.raises(UserError, match=r"cannot hold the field 'created'.*--drop created"):
        start(*flags, f"--output={tmp_path / 'out'}")
    drop = ["--drop=created", "--drop=large", "--drop=large"]
    summary = start(*flags, f"--output={tmp_path / 'out'}", *drop)
    assert summary["dropped"] == {"created": 6, "large": 6}
    assert summary["plan"]["shards"] == 1
    assert not {"created", "large"} & set(records(tmp_path / "out")[0])


@pytest.mark.slow
def test_a_killed_job_goes_on_with_other_workers_to_the_same_bytes(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for workers, which import the detector
    slow = ["--detector=tests.experiments.cloc.tiny_vesl:SlowTruth", *ARGUMENTS[1:], *NOISE]
    start(scenes, f"--output={tmp_path / 'whole'}", *slow)
    output = tmp_path / "killed"
    command = [sys.executable, *COMMAND, scenes, f"--output={output}", *slow]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(output.glob("progress/0*.json"))) < 2:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    done = {p.name: p.stat().st_mtime_ns for p in output.glob("*.arrayrecord")}
    assert 2 <= len(done) < 6
    assert not (output / "summary.json").exists()
    # Other arguments, and somebody else's folder, are refused; the same ones go on.
    with pytest.raises(UserError, match=r"different: threshold\)"):
        start(scenes, f"--output={output}", *slow, "--threshold=0.2")
    start(scenes, f"--output={output}", *slow, *TWO)
    after = {n: (output / n).stat().st_mtime_ns for n in done}
    kept = [n for n in done if after[n] == done[n]]
    assert len(kept) >= 2
    assert files(output) == files(tmp_path / "whole")


def test_a_job_that_has_ended_does_nothing_and_loses_nothing(scenes, labels, tmp_path):
    folder, summary = tmp_path / "out", labels[1]
    shutil.copytree(labels[0], folder)
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "progress").mkdir()  # killed after the summary was written
    assert start(scenes, f"--output={folder}", *ARGUMENTS, "--drop=masks") == summary
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    # A shard that is damaged or gone is made again.
    path = folder / "00003.arrayrecord"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert start(scenes, f"--output={folder}", *ARGUMENTS, "--drop=masks") == summary
    assert path.read_bytes() == whole


def test_bad_records_are_counted_and_end_nothing(tmp_path):
    models = ["--detector=tests.experiments.cloc.tiny_vesl:Fussy", "--shards=3"]
    summary = start(
        "tests.experiments.cloc.tiny_vesl:Hostile", f"--output={tmp_path / 'out'}", *models
    )
    assert summary["written"] == 4
    assert summary["left_out"] == {
        "detector fails (ZeroDivisionError)": 4,
        "image format not recognised": 4,
        "image is truncated or broken": 4,
        "json is broken": 4,
        "record has several images": 4,
        "there is no caption": 4,
    }
    assert [r["number"] for r in records(tmp_path / "out")] == [0, 7, 14, 21]
    captions = tmp_path / "captions.csv"
    captions.write_text("key,text\n1,a cat\n")
    file = ["--captioner=file", f"--captioner.file={captions}", "--captioner.key=key"]
    none = [
        "tests.experiments.cloc.tiny_vesl:Hostile",
        f"--output={tmp_path / 'none'}",
        *models,
        *file,
    ]
    with pytest.raises(UserError, match=r"None of 24 records.* has the field 'key'"):
        start(*none)
    captions.write_text("key,text\n99,a cat\n")
    with pytest.raises(UserError, match=r"None of 28 records could be labelled .*is no caption"):
        start(*none, "--captioner.field=number")


def test_a_training_stream_reads_the_labels(labels):
    from clipjax.data.stream import Stream

    folder, _ = labels
    config = base_config()
    config.data.sources = {"vesl": {"kind": "array_record", "files": f"{folder}/*.arrayrecord"}}
    config.data.features.image.update(size=32)
    config.data.features.image.augment.update(crop="fit", flip=0.0)
    config.data.features.regions = {"kind": "regions", "count": 4, "text_length": 16}
    config.preprocess.resize = "longest"
    stream = Stream(config)
    drawn = 0
    for index in range(COUNT):
        sample = stream[index]
        assert sample["image"].shape == (32, 32, 3)
        assert sample["boxes"].shape == (4, 4)
        assert len(sample["region_text"]) == 4
        n = int(np.sum(sample["region_mask"]))
        drawn += n
        boxes = sample["boxes"][sample["region_mask"]]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (sample["region_text"][sample["region_mask"]] > 0).any(axis=-1).all()
    assert drawn > 2 * COUNT


def test_mistakes_are_said_before_anything_runs(scenes, tmp_path):
    def said(match, *arguments):
        with pytest.raises(UserError, match=match):
            start(scenes, f"--output={tmp_path / 'new'}", *arguments)
        assert not (tmp_path / "new").exists()

    said("no detector named 'truht'.*did you mean 'truth'", "--detector=truht", "--shards=2")
    said("has no setting 'mis'", "--detector=truth", "--detector.mis=0.1", "--shards=2")
    said("given twice", *ARGUMENTS, "--detector.miss=0", "--detector.miss=1")
    said("NAME=VALUE", *ARGUMENTS, "--detector.miss")
    said("None of 90 records.*'txet'.*did you mean 'text'", *ARGUMENTS, "--captioner.fields=txet")
    said("needs names of fields, not 5", *ARGUMENTS, "--captioner.fields=5")
    said("seed of 0 or more", *ARGUMENTS, "--detector.seed=-1")
    said("one of --shards and --shard-size", "--detector=truth")
    said("--threshold must be", *ARGUMENTS, "--threshold=1.5")
    said("at least 1", *ARGUMENTS, "--batch=0")
    said("'image' cannot be dropped", *ARGUMENTS, "--drop=image")
    said("no flag '--no_such=1'", *ARGUMENTS, "--no_such=1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already"):
        start(scenes, f"--output={tmp_path / 'full'}", *ARGUMENTS)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_what_a_job_has_not_written_is_neither_taken_over_nor_removed(tmp_path):
    from tools.beam import resume

    plan, work = {"shards": 2}, tmp_path / "work"
    theirs = [work / "progress" / "notes.txt", work / ".mypart" / "x", work / ".part-1" / "x"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with pytest.raises(UserError, match="holds something already"):
        resume.Progress(str(work), plan)
    (work / "progress" / "plan.json").write_text("{")
    with pytest.raises(UserError, match="holds something already"):
        resume.Progress(str(work), plan)
    (work / "progress" / "plan.json").write_text(json.dumps(plan))
    ours = [work / f".{'a' * 32}.part", work / "progress" / f".{'b' * 32}.part"]
    ours.append(work / f".part-{'c' * 32}x_1")
    ours[2].mkdir()
    for path in (*ours[:2], ours[2] / "00000.arrayrecord"):
        path.write_text("half")
    with pytest.raises(UserError, match="of other data"):
        resume.Progress(str(work), {"shards": 3})
    assert all(p.exists() for p in ours)
    resume.Progress(str(work), plan).close()
    assert not any(p.exists() for p in ours)
    resume.note_shard(str(work), {"shard": 0})
    resume.finish(str(work), {"plan": plan, "shards": []})
    assert [p.name for p in (work / "progress").iterdir()] == ["notes.txt"]
    assert all(p.read_text() == "mine" for p in theirs)


def test_a_plan_that_cannot_be_read_is_not_taken_for_none(tmp_path, monkeypatch):
    from tools.beam import resume

    resume.Progress(str(tmp_path), {"shards": 2}).close()
    monkeypatch.setattr("clipjax.data.sources.files.PAUSES", ())

    def fails(path):
        raise TimeoutError("no answer")

    monkeypatch.setattr(resume, "read_all", fails)
    with pytest.raises(UserError, match=r"plan\.json' cannot be read: no answer"):
        resume.Progress(str(tmp_path), {"shards": 3})


def test_what_a_worker_says_is_one_sentence(scenes, tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match=r"--tagger=textblob\.$"):
        start(scenes, f"--output={tmp_path / 'out'}", *ARGUMENTS, "--tagger=nltk")


def test_another_process_is_waited_for(scenes, tmp_path):
    from tools.beam import resume

    plan = {"shards": 1}
    first = resume.Progress(str(tmp_path), plan)
    with pytest.raises(UserError, match="Another process writes"):
        resume.Progress(str(tmp_path), plan)
    first.close()
    resume.Progress(str(tmp_path), plan).close()


def test_a_remote_folder_goes_on_too(scenes, labels):
    import fsspec

    from tools.beam import resume

    folder, summary = labels
    output, memory = "memory://vesl-test", fsspec.filesystem("memory")
    if memory.exists("/vesl-test"):
        memory.rm("/vesl-test", recursive=True)
    start(scenes, f"--output={output}", *ARGUMENTS, "--drop=masks")
    whole = {p: memory.cat(p) for p in memory.find("/vesl-test")}
    assert {Path(p).name: v for p, v in whole.items()} == files(folder)
    # As a kill before the last shard leaves it.
    memory.rm("/vesl-test/summary.json")
    memory.rm("/vesl-test/00005.arrayrecord")
    memory.pipe("/vesl-test/progress/plan.json", json.dumps(summary["plan"]).encode())
    for line in summary["shards"]:
        resume.note_shard(output, line)
    start(scenes, f"--output={output}", *ARGUMENTS, "--drop=masks")
    assert {p: memory.cat(p) for p in memory.find("/vesl-test")} == whole
