"""What a run tells about itself: metrics, results, sample ids.

All processes of a job have the same numbers; process 0 writes them. Only sample ids are each process's own.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipjax.checkpoint import due
from clipjax.cost import hardware
from clipjax.errors import SharedError
from clipjax.job.agreement import Share, Tally, gather
from clipjax.job.distributed import barrier, is_primary
from clipjax.log.console import ConsoleWriter
from clipjax.log.profiling import Clock
from clipjax.log.writers import (
    JsonlWriter,
    MultiWriter,
    TensorBoardWriter,
    WandbWriter,
    read_results,
    replace_file,
    write_results,
)


class Dispatched(NamedTuple):
    """A step on its way: samples seen after it, its metrics, this process's sample ids, and what its tally sent."""

    samples: int
    metrics: Mapping[str, jax.Array]
    ids: np.ndarray
    sent: Any


class RunLog:
    """What a run tells about itself: metrics, results, sample ids. Nothing here changes what is learnt.

    Args:
      config: of the run.
      workdir: its directory.
      samples: seen so far; what was written beyond that is removed.
      mesh: of the run, for its peak FLOP/s.
      flops_per_sample: of training.
      share: which part of each batch this process reads.
      tally: counts over all processes.
      clock: measures where the time goes.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        samples: int,
        mesh: Mesh,
        flops_per_sample: float,
        share: Share,
        tally: Tally,
        clock: Clock,
    ):
        self._config, self._workdir = config, workdir
        self._tally, self._clock = tally, clock
        self._held: Dispatched | None = None
        resume = {"resume_samples": samples}
        self._console = ConsoleWriter(config.total_samples, start_samples=samples)
        self._first = is_primary()
        writers = []
        if self._first:
            writers += [JsonlWriter(workdir / "metrics.jsonl", **resume), self._console]
        if self._first and config.log.tensorboard:
            writers.append(TensorBoardWriter(workdir / "tensorboard", **resume))
        if self._first and config.log.wandb:
            writers.append(
                WandbWriter(
                    "clipjax", name=workdir.name, config=config.to_dict(), directory=workdir
                )
            )
        self._writers = MultiWriter(writers)
        self._ids = None
        if config.data.record_ids:
            self._ids = SampleIds(workdir / "sample_ids", samples // config.batch_size, share)
            barrier("sample ids cut", config.run.start_timeout)
        # A run that was killed after an evaluation may have results of a moment that is still to come.
        results = read_results(workdir / "results.json").items()
        self._results = {name: r for name, r in results if r["samples"] <= samples}
        peak = hardware.peak(mesh.devices.flat[0].device_kind)
        self._mfu_per_speed = flops_per_sample / (peak * mesh.devices.size) if peak else None
        self._mark = (time.perf_counter(), samples)
        self._paused = 0.0

    def hold(self, step: Dispatched) -> None:
        """Keeps a step that was just dispatched, to be settled when the next one is on its way."""
        self._held = step

    def settle(self) -> None:
        """Waits for the step that is held, if there is one; see `finish_step`."""
        if self._held:
            step, self._held = self._held, None
            self.finish_step(*step)

    def finish_step(
        self, samples: int, metrics: Mapping[str, jax.Array], ids: np.ndarray, sent: Any
    ) -> None:
        """Fetches one step's metrics, stops the run if loss or gradient is not finite, and writes them if it is time.

        Raises:
          SharedError: the loss or its gradient is not finite, or too many records were bad.
        """
        # A gradient can be broken while the loss is not yet: such an update must not be saved either.
        for key, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
            value = float(metrics[key])
            if not np.isfinite(value):
                ids = gather(ids).reshape(-1)
                shown = ", ".join(map(str, ids[:16])) + (", ..." if len(ids) > 16 else "")
                raise SharedError(
                    f"The {what} is {value} at {samples:,} samples; the batch had the sample ids {shown}. "
                    "What was saved before is good; lower config.optim.lr, or set config.optim.clip_norm."
                )
        self._tally.receive(sent)
        reasons = {k: n for k, n in self._tally.counters.items() if k.startswith("bad/") and n}
        bad, limit = sum(reasons.values()), self._config.data.max_bad_fraction
        # A few bad records at the start say nothing about the fraction.
        if bad > limit * samples and bad > 10:
            raise SharedError(
                f"{bad} of {samples + bad:,} records could not be used, more than data.max_bad_fraction = {limit} "
                f"({', '.join(f'{n} {k[4:]}' for k, n in reasons.items())}); look at them with "
                "clipjax data verify, or raise that limit."
            )
        if not (
            due(samples, self._config.log.every, self._config.batch_size)
            or samples >= self._config.total_samples
        ):
            return
        values = {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}
        now = time.perf_counter()
        speed = (samples - self._mark[1]) / max(now - self._mark[0] - self._paused, 1e-9)
        self._mark, self._paused = (now, samples), 0.0
        values |= {
            "samples_per_second": speed,
            "data/bad_records": bad,
            "data/cut_texts": self._tally.counters["cut"],
            "data/filtered_records": self._tally.counters["filtered"],
            **{f"data/{k.replace(' ', '_')}": n for k, n in reasons.items()},
            **self._clock.split(),
        }
        if self._mfu_per_speed:
            values["mfu"] = speed * self._mfu_per_speed
        self._writers.write(samples, samples // self._config.batch_size, values)

    def evaluate(self, name: str, evaluator: Any, params: Any, samples: int) -> None:
        """Runs one evaluator, writes its metrics, and keeps them as its last result."""
        start = time.perf_counter()
        metrics = evaluator.run(params)
        step = samples // self._config.batch_size
        self._writers.write(
            samples, step, {f"{name}/{key}": value for key, value in metrics.items()}
        )
        self._results[name] = {
            "samples": samples,
            "metrics": metrics,
            "protocol": evaluator.protocol,
        }
        if self._first:
            write_results(self._workdir / "results.json", self._results)
        self._paused += time.perf_counter() - start

    def record_ids(self, samples: int, ids: np.ndarray) -> None:
        """Writes the sample ids of one step, if the config asks for them."""
        if self._ids:
            self._ids.write(samples // self._config.batch_size, ids)

    def close(self) -> None:
        """Flushes and closes all writers."""
        self._writers.close()
        if self._ids:
            self._ids.close()


class SampleIds:
    """Files `PART.jsonl`, one for each part of the batch: a line a step, with the step and its sample ids.

    Process 0 removes the lines beyond `last_step` from all files first, also from those of parts that are no more: the
    run may go on with another number of processes.
    """

    def __init__(self, folder: Path, last_step: int, share: Share):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.jsonl") if is_primary() else ():
            lines = file.read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            replace_file(file, [line for line in whole if json.loads(line)["step"] <= last_step])
        self._path, self._writes, self._file = folder / f"{share.part}.jsonl", share.counts, None

    def write(self, step: int, ids: np.ndarray) -> None:
        """Appends one line."""
        if self._writes and self._file is None:
            self._file = self._path.open("ab", buffering=0)
        if self._file:
            line = {"step": step, "sample_ids": ids.tolist()}
            self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()
