"""Real processes on this machine: the same numbers as one process, and a job that survives the death of a part."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import clipjax
from clipjax import rules
from clipjax.errors import UserError
from clipjax.job import distributed
from tests.tiny_job import BATCH, PATIENCE, ROOT, STEPS, Job, finished, sample_ids
from tests.tiny_run import assert_same_arrays, saved, trajectory


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The workdir of an undisturbed run of two processes."""
    return finished(tmp_path_factory.mktemp("pair") / "run", 2)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_are_one_with_as_many_devices(processes, pair, tmp_path):
    steps = STEPS if processes == 2 else 8
    several = pair if processes == 2 else finished(tmp_path / "several", processes, steps=steps)
    one = finished(tmp_path / "one", 1, processes, steps=steps)
    assert sample_ids(several) == sample_ids(one)
    assert [line["samples"] for line in trajectory(several)] == [
        line["samples"] for line in trajectory(one)
    ]
    for a, b in zip(trajectory(several), trajectory(one), strict=True):
        assert a.keys() == b.keys()
        for name, value in b.items():
            # Not bit for bit: gloo adds in another order than the collectives inside one process.
            assert a[name] == pytest.approx(value, rel=2e-5, abs=2e-6), (name, b["samples"])
    first = [json.loads((w / "results.json").read_text()) for w in (several, one)]
    assert first[0].keys() == first[1].keys()


def test_what_is_saved_once_by_several_processes(tmp_path):
    """Both write one folder, and both find it again; the whole of it is what one process saves."""
    frozen = ("optim.freeze=(('image/.*', True), ('.*', False))", "checkpoint.frozen_once=True")
    workdir = finished(tmp_path / "run", 2, 1, *frozen, "checkpoint.keep=None", steps=8)
    places = sorted((workdir / "checkpoints").iterdir())
    assert len(list((workdir / "checkpoints" / "frozen").iterdir())) == 1
    before = {name: np.asarray(x) for name, x in rules.paths(clipjax.load(workdir).params).items()}
    for place in places:
        if place.name.isdigit() and int(place.name) > 4 * BATCH:
            shutil.rmtree(place)
    finished(workdir, 2, 1, *frozen, "checkpoint.keep=None", steps=8)
    after = rules.paths(clipjax.load(workdir).params)
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_dies_all_stop_and_the_job_goes_on(victim, pair, tmp_path):
    workdir = tmp_path / "run"
    job = Job(workdir, 2)
    job.wait_for_steps(workdir, int(np.random.default_rng().integers(6, 16)))
    job.runs[victim].send_signal(signal.SIGKILL)
    start = time.monotonic()
    statuses = job.statuses()
    assert time.monotonic() - start < 60
    assert statuses[victim] == -signal.SIGKILL
    # Process 0 takes the coordination service with it, and JAX may abort the others before they can speak.
    assert statuses[1 - victim] not in (0, None)
    if victim == 1:
        assert statuses[0] == distributed.TRY_AGAIN
        assert "Another process of this job is gone" in job.said(0)
        assert "start the same command again" in job.said(0)

    elsewhere = shutil.copytree(workdir, tmp_path / "alone")
    finished(workdir, 2)
    assert trajectory(workdir) == trajectory(pair)
    assert sample_ids(workdir) == sample_ids(pair)
    assert_same_arrays(saved(workdir, STEPS * BATCH), saved(pair, STEPS * BATCH))

    if victim == 1:  # with another number of processes: the same samples
        shutil.rmtree(elsewhere / "sample_ids")
        finished(elsewhere, 1, 2)
        later = sample_ids(elsewhere)
        assert later.items() <= sample_ids(pair).items()
        assert max(later) == STEPS


def test_a_signal_to_one_stops_all_at_one_step(tmp_path):
    workdir = tmp_path / "run"
    job = Job(workdir, 2, 1, "evals={}", steps=4000)
    job.wait_for_steps(workdir, 5)
    job.runs[1].send_signal(signal.SIGTERM)
    assert job.statuses() == [128 + signal.SIGTERM] * 2
    assert job.said(0).count("Stopped by SIGTERM; saved at") == 1
    assert "Stopped" not in job.said(1)
    last = trajectory(workdir)[-1]["samples"]
    assert (workdir / "checkpoints" / str(last)).is_dir()


def test_processes_with_different_configs_are_refused(tmp_path):
    job = Job(tmp_path / "run", 2, 1, differing=["optim.lr=0.5", "seed=3"])
    assert job.statuses() == [2, 2]
    assert "Process 1 has another config than process 0, in optim, seed" in job.said(0)
    assert not (tmp_path / "run" / "checkpoints").exists()


BARRIER = """
import sys
from clipjax.job import distributed
distributed.start(sys.argv[1], 2, int(sys.argv[2]))
from clipjax.errors import UserError
distributed.barrier("both are here", 60)
if sys.argv[2] == "0":
    try:
        distributed.barrier("the other one is late", 2)
    except UserError as error:
        print(error)
distributed.barrier("the end", 60)
"""


def test_a_barrier_names_who_is_missing():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", BARRIER, address, str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [run.communicate(timeout=PATIENCE) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert "Waited 2 s at 'the other one is late' for process" in outputs[0][0]


HANG = """
import sys, time
from pathlib import Path
from clipjax.job.watchdog import Watchdog
with Watchdog({"step_timeout": 2, "pause_timeout": 60}, Path(sys.argv[1])) as dog:
    with dog.pause("evaluating"):
        time.sleep(3)  # longer than a step may take
    dog.step_done(8)
    time.sleep(1000)
"""


def test_a_hang_leaves_stacks_and_stops(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HANG, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == distributed.TRY_AGAIN
    assert "No step has finished for 2 s (in the step after 8 samples)" in done.stderr
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert 'File "<string>", line 9 in <module>' in stacks


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({}, (), None),
        ({}, ("auto",), {}),
        ({"SLURM_NTASKS": "4"}, (), None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "x"}, (), "ompi"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (), {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, (), None),
        ({"MEGASCALE_NUM_SLICES": "2"}, (), {}),
    ],
)
def test_launchers_are_recognised(environment, arguments, expected):
    found = distributed.launch(environment, *arguments)
    assert (found or {}).get("cluster_detection_method", found) == expected


def test_slurm_needs_a_step_of_several_tasks():
    slurm = dict.fromkeys(
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "0"
    )
    tasks = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
    assert distributed.launch(slurm | tasks) == {"cluster_detection_method": "slurm"}
    assert distributed.launch(slurm | tasks | {"SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("host:1", 2, None),
            "needs --coordinator=HOST:PORT, --num-processes=N and --process-id=I",
        ),
        (("host", 2, 0), "needs --coordinator=HOST:PORT"),
        ((None, None, 1), "but here is only --process-id=1"),
        (("host:1", 2, 2), "--process-id=2 must be from 0 to --num-processes=2 less one"),
    ],
)
def test_half_given_flags_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        distributed.launch({}, *arguments)


def test_an_address_without_a_launcher_is_refused():
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS is set, but no launcher"):
        distributed.launch({"JAX_COORDINATOR_ADDRESS": "a:1"})


SLURM = dict.fromkeys(("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "0")


@pytest.mark.parametrize(
    ("tasks", "ranks", "wanted"), [("1", "4", "mpi"), ("2", "8", "mpi"), ("4", "4", "slurm")]
)
def test_mpi_inside_a_slurm_allocation(tasks, ranks, wanted, monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: object())
    environment = SLURM | {"SLURM_NTASKS": tasks, "SLURM_STEP_NUM_TASKS": tasks, "PMI_SIZE": ranks}
    found = distributed.launch(environment)
    assert found == {"cluster_detection_method": {"mpi": "mpi4py", "slurm": "slurm"}[wanted]}


def test_gpus_that_would_be_idle_are_refused():
    tasks = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
    idle = SLURM | tasks | {"SLURM_GPUS_ON_NODE": "8"}
    with pytest.raises(
        UserError, match=r"8 GPUs and 1 task\(s\) of this step, and JAX gives each task one"
    ):
        distributed.launch(idle)
    slurm = {"cluster_detection_method": "slurm"}
    assert distributed.launch(idle | {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7"}) == slurm
    assert distributed.launch(SLURM | tasks | {"SLURM_GPUS_ON_NODE": "1"}) == slurm
