"""Promise 3: kill a run at any instant, and the resumed run makes the same losses from the same samples."""

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import (
    CONFIG,
    assert_same_arrays,
    losses,
    sample_ids,
    saved,
    start,
    trajectory,
)

STEPS, BATCH = 120, 8
TOTAL = STEPS * BATCH
KILLS = 22
STATEFUL = CONFIG.with_name("stateful.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    run = start(workdir, steps=STEPS, output=subprocess.PIPE)
    _, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors.decode()
    return workdir


def assert_same_run(workdir, whole):
    assert trajectory(workdir) == trajectory(whole)
    assert sample_ids(workdir) == sample_ids(whole)
    assert_same_arrays(saved(workdir, TOTAL), saved(whole, TOTAL))
    results = [json.loads((w / "results.json").read_text()) for w in (workdir, whole)]
    assert results[0] == results[1]
    assert (workdir / "report.html").stat().st_size > 0


def steps_written(workdir):
    """Lines of the log that are whole."""
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def saving(workdir):
    """Whether a checkpoint is being written: Orbax renames its folder when all of it is there."""
    folder = workdir / "checkpoints"
    try:
        return any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir())
    except FileNotFoundError:
        return False


def wait_until(run, condition, seconds=600.0):
    """Polls until `condition()`; False if the run ended before. A busy machine may be slow, but not for ever."""
    end = time.monotonic() + seconds
    while run.poll() is None:
        if condition():
            return True
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.001)
    return False


def test_the_run_is_what_it_should_be(whole):
    lines = [line for line in trajectory(whole) if "loss" in line]
    assert [line["samples"] for line in lines] == list(range(BATCH, TOTAL + 1, BATCH))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0]["data/cut_texts"] <= BATCH < lines[-1]["data/cut_texts"]
    assert np.mean(losses(whole)[-20:]) < np.mean(losses(whole)[:20])
    ids = [json.loads(line) for line in sample_ids(whole).splitlines()]
    assert [line["step"] for line in ids] == list(range(1, STEPS + 1))
    assert all(len(set(line["sample_ids"])) == BATCH for line in ids)
    evaluated = [
        line["samples"] for line in trajectory(whole) if "unseen/image_to_text/R@1" in line
    ]
    assert evaluated == [TOTAL // 2, TOTAL]


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on(tmp_path, whole):
    for signum, step in ((signal.SIGTERM, 9), (signal.SIGINT, 70)):
        run = start(tmp_path, steps=STEPS, output=subprocess.PIPE)
        # Between two regular checkpoints, which are four steps apart.
        assert wait_until(run, lambda step=step: steps_written(tmp_path) >= step)
        run.send_signal(signum)
        _, errors = run.communicate(timeout=600)
        assert run.returncode == 128 + signum
        (newest,) = [p.name for p in (tmp_path / "checkpoints").iterdir()]
        message = f"Stopped by {signum.name}; saved at {int(newest):,} samples."
        assert errors.decode().splitlines() == [message]
        so_far = trajectory(tmp_path)
        assert so_far[-1]["samples"] == int(newest) < TOTAL
        assert so_far == trajectory(whole)[: len(so_far)]

    assert start(tmp_path, steps=STEPS).wait(timeout=240) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_kill_at_random_instants(tmp_path, whole):
    """`kill -9` while starting, between steps, and while a checkpoint is being written."""
    rng = np.random.default_rng(0)
    kills, inside_a_save = 0, 0
    while kills < KILLS:
        before = steps_written(tmp_path)
        run = start(tmp_path, steps=STEPS)
        kind = rng.choice(["start", "step", "save"], p=[0.1, 0.45, 0.45])
        if kind == "start":
            until = time.monotonic() + rng.uniform(0.5, 4)
            wait_until(run, lambda until=until: time.monotonic() > until)
        else:
            # A resumed run first cuts the log back to its checkpoint; then the log grows again.
            enough, in_save = before + int(rng.integers(1, 7)), kind == "save"
            wait_until(run, lambda n=enough: steps_written(tmp_path) >= n)
            wait_until(run, lambda inside=in_save: saving(tmp_path) == inside)
            time.sleep(rng.uniform(0, 0.1) if in_save else 0)
        if run.poll() is not None:
            break
        run.kill()
        run.wait()
        kills += 1
        inside_a_save += saving(tmp_path)
    assert kills == KILLS, f"the run ended with {run.returncode} after {kills} kills"
    assert inside_a_save >= 5
    assert KILLS - inside_a_save >= 5
    assert start(tmp_path, steps=STEPS).wait(timeout=240) == 0
    assert_same_run(tmp_path, whole)
    assert not saving(tmp_path)


@pytest.mark.slow
def test_kill_a_run_with_state_that_has_no_gradient(tmp_path):
    """A queue by a loss, a running mean by the model, a momentum copy, and a refresh: `kill -9` costs none of them."""
    steps, rng = 40, np.random.default_rng(1)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight, steps=steps, config=STATEFUL).wait(timeout=600) == 0
    for number in range(4):
        before = steps_written(killed)
        run = start(killed, steps=steps, config=STATEFUL)
        enough = before + int(rng.integers(2, 8))
        assert wait_until(run, lambda n=enough: steps_written(killed) >= n)
        wait_until(run, lambda inside=number % 2 == 1: saving(killed) == inside)
        run.kill()
        run.wait()
    assert start(killed, steps=steps, config=STATEFUL).wait(timeout=600) == 0
    assert trajectory(killed) == trajectory(straight)
    total = str(steps * BATCH)
    assert_same_arrays(saved(killed, total), saved(straight, total))
    state = saved(straight, total)
    for name in ("queue", "centre", "slow_scale", "number"):
        assert np.any(state[f"params['{name}']"] != 0)


def test_another_device_count_sees_the_same_samples(tmp_path, whole):
    run = start(tmp_path, "mesh.fsdp=2", steps=STEPS, devices=4)
    # The first steps are enough; the schedule must be that of the whole run.
    wait_until(run, lambda: steps_written(tmp_path) >= 6)
    run.kill()
    run.wait()
    ids, whole_ids = sample_ids(tmp_path).splitlines()[:5], sample_ids(whole).splitlines()[:5]
    assert ids == whole_ids
    np.testing.assert_allclose(losses(tmp_path)[:5], losses(whole)[:5], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_run_leaves_no_workers(tmp_path):
    run = start(tmp_path, "data.workers=2", steps=4000)
    assert wait_until(run, lambda: steps_written(tmp_path) >= 2)
    workers = processes_of(run.pid)
    assert len(workers) >= 2
    run.kill()
    run.wait()
    end = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end, "the workers outlive the run"
        time.sleep(0.1)


def processes_of(parent):
    """Ids of the child processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if path.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(path.parent.name))
    return found


def alive(pid):
    """Whether a process is there, and no zombie that nobody has collected."""
    file = Path("/proc") / str(pid) / "stat"
    try:
        return file.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
