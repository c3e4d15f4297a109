"""A mixture of four kinds of sources, killed at any instant: every sample as if nothing had happened, on any hosts."""

import io
import json
import random
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from clipjax.cli import main
from clipjax.data.sources.array_record import write
from tests.tiny_job import BATCH, STEPS, Job, finished, sample_ids
from tests.tiny_run import assert_same_arrays, saved, trajectory

CONFIG = Path(__file__).parent / "configs" / "mixture.py"


def jpeg(number):
    """An image; every seventh is cut off."""
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((40 + number % 9, 36)).save(file, "JPEG")
    return file.getvalue()[: -90 if number % 7 == 3 else None]


def row(number):
    """What a data set knows of an image; some have no caption."""
    texts = [] if number % 11 == 5 else [f"image {number}", f"number {number} of many"]
    boxes = [[0.1 * k, 0.1, 0.1 * k + 0.5, 0.7] for k in range(number % 5)]
    return {
        "text": texts,
        "long": f"One of {number}. Two. Three.",
        "language": ("en", "de", "fr")[number % 3],
        "score": number % 10 / 10,
        "boxes": boxes,
        "region_text": [f"part {k}" for k in range(len(boxes))],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data, in four layouts."""
    found = tmp_path_factory.mktemp("mixture")
    for shard in range(3):
        with tarfile.open(found / f"{shard}.tar", "w") as tar:
            for number in range(20 * shard, 20 * shard + 17 + shard):
                fields = row(number)
                texts = fields.pop("text")
                parts = {
                    "jpg": jpeg(number),
                    "json": json.dumps(fields | {"caption": texts}).encode(),
                }
                for ending, data in parts.items():
                    member = tarfile.TarInfo(f"{number:05d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    assert main(["data", "index", str(found / "*.tar")]) == 0
    rows = [row(n) | {"image": {"bytes": jpeg(n), "path": f"{n}.jpg"}} for n in range(100, 137)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, found / "rows.parquet", row_group_size=5)
    for shard in range(2):
        numbers = range(200 + 20 * shard, 219 + 20 * shard)
        write([row(n) | {"image": jpeg(n)} for n in numbers], found / f"{shard}.array_record")
    with (found / "captions.jsonl").open("w") as lines:
        for number in range(300, 323):
            (found / f"{number}.jpg").write_bytes(jpeg(number))
            lines.write(json.dumps(row(number) | {"image": f"{number}.jpg"}) + "\n")
    return found


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The workdir of a run that nobody disturbed: one process, no workers."""
    return finished(tmp_path_factory.mktemp("whole") / "run", 1, 2, **how(folder))


def how(folder):
    return {"config": CONFIG, "steps": f"{STEPS}@{folder}"}


def kill(job):
    """All of its processes at once, as a machine that loses power."""
    for run in job.runs:
        run.send_signal(signal.SIGKILL)
    job.statuses()


def test_the_mixture(whole):
    ids = sample_ids(whole)
    assert list(ids) == list(range(1, STEPS + 1))
    sources = np.array([i >> 40 for step in ids.values() for i in step])
    assert np.bincount(sources).shape == (4,)
    last = [line for line in trajectory(whole) if "loss" in line][-1]
    assert last["data/filtered_records"] > 10
    assert last["data/bad/image_is_truncated_or_broken"] > 3
    assert last["data/bad/text_is_empty"] > 3
    counted = sum(v for k, v in last.items() if k.startswith("data/bad/"))
    assert counted == last["data/bad_records"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "workers_before", "after", "workers_after"),
    [(1, 0, 1, 2), (1, 2, 1, 4), (1, 4, 2, 0), (2, 0, 1, 0), (2, 2, 2, 2)],
)
def test_killed_anywhere(before, workers_before, after, workers_after, folder, whole, tmp_path):
    """hosts and workers before the kill -9, and after it."""
    workdir = tmp_path / "run"
    job = Job(workdir, before, 2 // before, f"data.workers={workers_before}", **how(folder))
    job.wait_for_steps(workdir, random.SystemRandom().randrange(1, STEPS - 2))
    kill(job)
    again = finished(workdir, after, 2 // after, f"data.workers={workers_after}", **how(folder))
    assert sample_ids(again) == sample_ids(whole)
    ours, theirs = ([x for x in trajectory(w) if "loss" in x] for w in (again, whole))
    assert [x["samples"] for x in ours] == [x["samples"] for x in theirs]
    counters = [k for k in theirs[-1] if k.startswith("data/")]
    assert {k: ours[-1][k] for k in counters} == {k: theirs[-1][k] for k in counters}
    if before == after == 1:
        assert ours == theirs
        assert_same_arrays(saved(again, STEPS * BATCH), saved(whole, STEPS * BATCH))
    else:  # gloo adds in another order than the collectives inside one process
        for a, b in zip(ours, theirs, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
