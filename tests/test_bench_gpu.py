"""tools/bench_gpu.py without a GPU: its pure functions, the order of its measurements, and a rehearsal of all of it."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bench_gpu.py"
SPEC = importlib.util.spec_from_file_location("bench_gpu", TOOL)
bench_gpu = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench_gpu)
Entry = bench_gpu.Entry


def test_entries():
    assert bench_gpu.read_entry("ViT-B-16") == Entry("ViT-B-16", "dots", None)
    assert bench_gpu.read_entry("ViT-B-16:none") == Entry("ViT-B-16", "none", None)
    assert bench_gpu.read_entry("ViT-L-14:full:96") == Entry("ViT-L-14", "full", 96)
    for text in ("", "ViT-B-16:half", "ViT-B-16:full:0", "ViT-B-16:full:many", "a:full:1:2"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not NAME"):
            bench_gpu.read_entry(text)


@given(
    room=st.integers(0, 5000),
    unit=st.integers(1, 64),
    most=st.integers(1, 5000),
    finest=st.integers(1, 32),
)
def test_search(room, unit, most, finest):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= room

    found = bench_gpu.largest(fits, unit, most, finest)
    best = min(room, most) // unit * unit
    assert found % unit == 0
    assert found <= best <= found + max(unit, found // finest)
    assert found == 0 or found in tried
    assert len(set(tried)) == len(tried) <= 2 + 2 * 13
    assert all(0 < t <= most and t % unit == 0 for t in tried)


def test_search_doubles_then_halves():
    tried = []
    assert bench_gpu.largest(lambda b: tried.append(b) or b <= 900, 16, 16_384) == 896
    assert tried == [16, 32, 64, 128, 256, 512, 1024, 768, 896, 960]


@given(batch=st.integers(1, 100_000), unit=st.sampled_from([1, 4, 16]))
def test_comfortable_batch(batch, unit):
    found = bench_gpu.comfortable(batch, unit)
    assert found == unit or (found <= batch * 7 // 8 and found % unit == 0)
    assert found % 64 == 0 or batch < 74


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes", True),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("INTERNAL: Failed to launch a kernel", False),
    ],
)
def test_signs_of_short_memory(text, short):
    assert bench_gpu.is_short_of_memory(text) == short


ROWS = [
    {"model": "ViT-L-14", "side": "clipjax", "framework": "clipjax", "batch": 448}
    | {"samples_per_second": 1000.4, "mfu": 0.513, "peak_bytes": 61_230_000_000, "turns": [0.4]},
    {"model": "ViT-L-14", "side": "torch", "framework": "torch", "batch": 448}
    | {"problem": "out of memory", "mfu": None},
    {"model": "ViT-L-14", "side": "clipjax", "framework": "clipjax, cached", "batch": 65_536}
    | {"samples_per_second": 700.0, "mfu": 0.9, "peak_bytes": None, "more": True},
]


def test_table():
    assert bench_gpu.table(ROWS).splitlines() == [
        "| model | framework | batch | samples/s | MFU | peak memory, GB |",
        "|---|---|---|---|---|---|",
        "| ViT-L-14 | clipjax | 448 | 1,000 | 51.3% | 61.2 |",
        "| ViT-L-14 | torch | 448 | out of memory | – | – |",
        "| ViT-L-14 | clipjax, cached | 65,536 or more | 700 | 90.0% | – |",
    ]


def test_mfu():
    row = {"samples_per_second": 100.0, "flops_per_sample": 5e9}
    assert bench_gpu.mfu(row, 1e12) == pytest.approx(0.5)
    assert bench_gpu.mfu(row, None) is None
    assert bench_gpu.mfu({"problem": "out of memory"}, 1e12) is None


def test_goals():
    """What counts are the turns, not the single step at the largest batch."""
    reached, missing = bench_gpu.verdicts(ROWS, ["ViT-L-14", "ViT-B-32", "ViT-B-16"])
    assert reached == "ViT-L-14: the goal is 50% MFU; 51.3% measured: reached."
    assert missing == "ViT-B-16: the goal is 40% MFU; not measured."
    (failed,) = bench_gpu.verdicts([ROWS[0] | {"mfu": 0.499}], ["ViT-L-14"])
    assert failed.endswith("49.9% measured: not reached.")


class Rehearsed(bench_gpu.Bench):
    """With processes that only pretend: clipjax has room for 100 samples, torch for `torch_room`."""

    def __init__(self, folder, torch_room, torch_parameters=7):
        args = argparse.Namespace(rehearse=True, json=folder / "found.json", attention="auto")
        scale = bench_gpu.Scale(4, 1024, 400, turns=3, warmup=3, steps=20)
        super().__init__(args, scale, {})
        self.room = {"clipjax": 100, "torch": torch_room}
        self.parameters = {"clipjax": 7, "torch": torch_parameters}
        self.jobs = []
        self.has_torch = True
        self.found["peak"] = 1e6

    def start(self, side, **job):
        self.jobs.append((side, job["batch"], job["chunks"], job["steps"]))
        if job["batch"] // job["chunks"] > self.room[side]:
            return {"out_of_memory": True}
        seconds = (1 + len(self.jobs) % 3) * job["batch"]
        found = {"seconds": seconds, "parameters": self.parameters[side], "peak_bytes": 1e9}
        return found | ({"flops_per_sample": 5e5} if side == "clipjax" else {})


def test_turns(tmp_path):
    bench = Rehearsed(tmp_path, torch_room=100)
    bench.measure(Entry("ViT-B-16"))
    turns = [job[:2] for job in bench.jobs if job[3] == 20]
    assert turns == [("clipjax", 64), ("torch", 64)] * 3
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(r["framework"], r["batch"]) for r in rows] == [
        ("clipjax, largest batch", 96),
        ("clipjax", 64),
        ("torch, transformers CLIPModel", 64),
        ("clipjax, largest batch with the gradient cache (micro-batches of 32)", 384),
    ]
    for row in rows[1:3]:
        assert row["samples_per_second"] == 64 / min(row["turns"])
        assert row["mfu"] == row["samples_per_second"] * 5e5 / 1e6
    assert not rows[0]["more"]
    assert rows[3]["more"]
    assert {c: b for _, b, c, _ in bench.jobs if c > 1} == {2: 64, 4: 128, 8: 256, 12: 384}


def test_torch_with_less_room_is_timed_at_its_own_batch(tmp_path):
    bench = Rehearsed(tmp_path, torch_room=25)
    bench.measure(Entry("ViT-B-16", "full", 64))
    rows = [(r["side"], r["batch"], r.get("problem")) for r in bench.found["rows"][:-1]]
    assert rows == [
        ("torch", 64, "out of memory"),
        ("clipjax", 64, None),
        ("clipjax", 20, None),
        ("torch", 20, None),
    ]


def test_different_architectures_are_refused(tmp_path):
    bench = Rehearsed(tmp_path, torch_room=100, torch_parameters=8)
    with pytest.raises(bench_gpu.FailedError, match="numbers of parameters differ"):
        bench.measure(Entry("ViT-B-16", "dots", 8))


def run(folder, *arguments):
    """The program, where torch cannot be imported."""
    (folder / "torch.py").write_text("raise ImportError('not here', name='torch')\n")
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        check=False,
    )


def test_there_must_be_a_gpu(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "bench_gpu needs an NVIDIA GPU that JAX can use, and the platform here is cpu; "
        "--rehearse runs tiny models on a CPU instead.\n"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("ViT-B-61", "did you mean 'ViT-B-16'"), ("ViT-B-16-SigLIP", "is no CLIP")],
)
def test_wrong_models_are_refused_before_anything_starts(name, message, tmp_path):
    done = run(tmp_path, f"--model={name}")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Real processes: the search stops at the artificial limit of 9 samples, in a micro-batch or in all."""
    done = run(tmp_path, "--rehearse", "--model=ViT-B-16")
    assert done.returncode == 0, done.stderr
    missing = "There is no torch here, so clipjax is measured alone."
    lines = done.stdout.splitlines()
    assert missing in lines
    assert missing in done.stderr
    rows = [line for line in lines if line.startswith("| ViT-B-16 |")]
    assert [row.split(" | ")[1:3] for row in rows] == [
        ["clipjax, largest batch", "8"],
        ["clipjax", "4"],
        ["clipjax, largest batch with the gradient cache (micro-batches of 4)", "8"],
    ]
    found = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert found["rehearsal"]
    assert found["device"]["platform"] == "cpu"
    tries = [(t["batch"], t["chunks"], "seconds" in t) for t in found["tries"]]
    plain = [(4, 1, True), (8, 1, True), (16, 1, False), (12, 1, False)]
    assert tries == [*plain, (4, 1, True), (4, 1, True), (8, 2, True), (16, 4, False)]
    turns = found["rows"][1]["turns"]
    assert len(turns) == 2
    assert found["rows"][1]["samples_per_second"] == 4 / min(turns)
    assert len({t["parameters"] for t in found["tries"] if "seconds" in t}) == 1
