"""Jobs of several processes on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.tiny_run import CONFIG

ROOT = Path(__file__).parent.parent
STEPS, BATCH = 24, 8
PATIENCE = 240  # seconds; a busy machine is slow


class Job:
    """`clipjax train` in several processes with `devices` simulated devices each."""

    def __init__(
        self,
        workdir,
        processes,
        devices=1,
        *overrides,
        steps=STEPS,
        differing=(),
        config=CONFIG,
    ):
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        )
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path}
        self.logs, self.runs = [], []
        for process in range(processes):
            command = [sys.executable, "-m", "clipjax.cli", "train", f"--config={config}:{steps}"]
            command += [f"--workdir={workdir}", "--config.data.record_ids=True"]
            command += [f"--config.{o}" for o in overrides]
            if processes > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--num-processes={processes}"]
                command += [f"--process-id={process}"]
            if process == processes - 1:
                command += [f"--config.{o}" for o in differing]
            log = workdir.parent / f"{workdir.name}-{processes}-{process}.log"
            self.logs.append(log)
            with log.open("w") as file:
                self.runs.append(
                    subprocess.Popen(command, env=environment, stdout=file, stderr=file)
                )

    def statuses(self):
        """Waits for all."""
        try:
            return [run.wait(timeout=PATIENCE) for run in self.runs]
        finally:
            for run in self.runs:
                run.kill()

    def said(self, process):
        return self.logs[process].read_text()

    def wait_for_steps(self, workdir, steps):
        end = time.monotonic() + PATIENCE
        file = workdir / "metrics.jsonl"
        while not file.exists() or file.read_bytes().count(b"\n") < steps:
            assert all(run.poll() is None for run in self.runs), self.said(0)[-2000:]
            assert time.monotonic() < end, "the job makes no progress"
            time.sleep(0.01)


def finished(workdir, *how, **more):
    job = Job(workdir, *how, **more)
    assert job.statuses() == [0] * len(job.runs), job.said(0)[-3000:]
    return workdir


def sample_ids(workdir):
    """step -> the ids of all processes in their order."""
    found = {}
    for file in sorted((workdir / "sample_ids").glob("*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            found.setdefault(line["step"], []).extend(line["sample_ids"])
    return found
