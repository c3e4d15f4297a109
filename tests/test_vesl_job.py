"""tools/beam/vesl.py: regions for a data set, whatever the workers, after any kill, and a training run reads them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apache_beam")
pytest.importorskip("textblob")
HERE = Path(__file__).resolve().parent
COMMAND = HERE.parent / "tools" / "beam" / "vesl.py"
sys.path.insert(0, str(COMMAND.parent))

import vesl  # noqa: E402

from clipjax.data.sources import array_record, make_source  # noqa: E402
from clipjax.data.tokenizers import make_tokenizer  # noqa: E402
from clipjax.defaults import base_config  # noqa: E402
from clipjax.errors import UserError  # noqa: E402
from experiments.cloc.score_vesl import row, score_folder  # noqa: E402

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
def test_a_killed_job_goes_on_with_other_workers_to_the_same_bytes(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))  # for workers, which import the detector
    slow = ["--detector=tiny_vesl:SlowTruth", *ARGUMENTS[1:], *NOISE]
    start(scenes, f"--output={tmp_path / 'whole'}", *slow)
    output = tmp_path / "killed"
    command = [sys.executable, COMMAND, scenes, f"--output={output}", *slow]
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
    folder, summary = labels
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
    models = ["--detector=tiny_vesl:Fussy", "--shards=3"]
    summary = start("tiny_vesl:Hostile", f"--output={tmp_path / 'out'}", *models)
    assert summary["written"] == 4
    assert summary["left_out"] == {
        "detector fails (ZeroDivisionError)": 4,
        "image format not recognised": 4,
        "image is truncated or broken": 4,
        "json is broken": 4,
        "record has several pictures": 4,
        "there is no caption": 4,
    }
    assert [r["number"] for r in records(tmp_path / "out")] == [0, 7, 14, 21]
    captions = tmp_path / "captions.csv"
    captions.write_text("key,text\n1,a cat\n")
    file = ["--captioner=file", f"--captioner.file={captions}", "--captioner.key=key"]
    with pytest.raises(UserError, match=r"None of 28 records could be labelled .*no field 'key'"):
        start("tiny_vesl:Hostile", f"--output={tmp_path / 'none'}", *models, *file)


def test_a_training_stream_reads_the_labels(labels):
    from clipjax.data.stream import Stream

    folder, _ = labels
    config = base_config()
    data = config.data.to_dict() | {
        "sources": {"vesl": {"kind": "array_record", "files": f"{folder}/*.arrayrecord"}}
    }
    data["regions"] |= {"count": 4}
    data["augment"] |= {"crop": "fit", "flip": 0.0}
    config.preprocess.resize = "longest"
    tokenizer = make_tokenizer(config.tokenizer, 16)
    stream = Stream(data, config.preprocess, 32, tokenizer, 0)
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


def test_what_a_worker_says_is_one_sentence(scenes, tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match=r"--tagger=textblob\.$"):
        start(scenes, f"--output={tmp_path / 'out'}", *ARGUMENTS, "--tagger=nltk")


def test_another_process_is_waited_for(scenes, tmp_path):
    import resume

    plan = {"shards": 1}
    first = resume.Progress(str(tmp_path), plan)
    with pytest.raises(UserError, match="Another process writes"):
        resume.Progress(str(tmp_path), plan)
    first.close()
    resume.Progress(str(tmp_path), plan).close()


def test_a_remote_folder_goes_on_too(scenes, labels):
    import fsspec
    import resume

    folder, summary = labels
    output, memory = "memory://vesl-test", fsspec.filesystem("memory")
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
