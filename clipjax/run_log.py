"""What a run tells about itself: metrics, results, sample ids."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipjax import flops
from clipjax.checkpoint import due
from clipjax.errors import UserError
from clipjax.progress import ConsoleWriter
from clipjax.writers import (
    JsonlWriter,
    MultiWriter,
    TensorBoardWriter,
    WandbWriter,
    read_results,
    replace_file,
    write_results,
)


class RunLog:
    """What a run tells about itself: metrics, results, sample ids. Nothing here changes what is learnt."""

    def __init__(
        self, config: ConfigDict, workdir: Path, samples: int, mesh: Mesh, flops_per_sample: float
    ):
        self._config, self._workdir = config, workdir
        resume = {"resume_samples": samples}
        self._console = ConsoleWriter(config.total_samples, start_samples=samples)
        self._first = (
            jax.process_index() == 0
        )  # all processes have the same numbers, one writes them
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
            file = workdir / "sample_ids" / f"{jax.process_index()}.jsonl"
            self._ids = SampleIds(file, samples // config.batch_size)
        # A run that was killed after an evaluation may have results of a moment that is still to come.
        results = read_results(workdir / "results.json").items()
        self._results = {name: r for name, r in results if r["samples"] <= samples}
        peak = flops.peak(mesh.devices.flat[0])
        self._mfu_per_speed = flops_per_sample / (peak * mesh.devices.size) if peak else None
        self._mark = (time.perf_counter(), samples)
        self._paused = 0.0

    def finish_step(
        self,
        samples: int,
        metrics: Mapping[str, jax.Array],
        ids: np.ndarray,
        counters: Mapping[str, int],
    ) -> None:
        """Fetches one step's metrics, stops the run if loss or gradient is not finite, and writes them if it is time.

        Raises:
          UserError: the loss or its gradient is not finite, or too many records were bad.
        """
        # A gradient can be broken while the loss is not yet: such an update must not be saved either.
        for key, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
            value = float(metrics[key])
            if not np.isfinite(value):
                shown = ", ".join(map(str, ids[:16])) + (", ..." if len(ids) > 16 else "")
                raise UserError(
                    f"The {what} is {value} at {samples:,} samples; the batch had the sample ids {shown}. "
                    "What was saved before is good; lower config.optim.lr, or set config.optim.clip_norm."
                )
        bad, limit = counters["bad"], self._config.data.max_bad_fraction
        # A few bad records at the start say nothing about the fraction.
        if bad > limit * samples and bad > 10:
            raise UserError(
                f"{bad} of {samples + bad:,} records could not be used, more than data.max_bad_fraction = {limit}; "
                "look at the data, or raise that limit."
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
            "data/cut_texts": counters["cut"],
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
    """One JSON line a step: the step and its sample ids on this host. Lines beyond `last_step` are removed first."""

    def __init__(self, file: Path, last_step: int):
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        replace_file(
            file,
            [
                line
                for line in lines
                if line.endswith(b"\n") and json.loads(line)["step"] <= last_step
            ],
        )
        self._file = file.open("ab", buffering=0)

    def write(self, step: int, ids: np.ndarray) -> None:
        """Appends one line."""
        self._file.write(json.dumps({"step": step, "sample_ids": ids.tolist()}).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
