"""The train loop: the only one.

The order of things at a sample count is fixed: metrics of all steps so far are checked and written, then refreshes
run, then evaluators, then the checkpoint is taken, then the next step runs. A resumed run therefore repeats nothing and
skips nothing.

In a job of several processes each of them runs this loop. They take the same decisions because they decide by the same
numbers: samples seen, metrics, and the tally of what happened in any of them.
"""

import contextlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from clipjax import checkpoint
from clipjax.checkpoint import Checkpointer, due
from clipjax.convert.pretrained import load_pretrained
from clipjax.coupling import check_apart
from clipjax.data.pipeline import batches
from clipjax.data.stream import COUNTERS, Stream
from clipjax.data.tokenizers import Tokenizer, run_tokenizer
from clipjax.encode.encoder import Encoder
from clipjax.errors import UserError
from clipjax.evals import make_evaluators
from clipjax.fields import HOST_ONLY
from clipjax.imports import used_modules
from clipjax.job.agreement import Tally, batch_share, check_same, from_primary, on_primary
from clipjax.job.distributed import barrier, is_primary, notify
from clipjax.job.signals import Stopped, stop_signals
from clipjax.job.watchdog import Watchdog, guard
from clipjax.log.profiling import Clock, Profile
from clipjax.log.report import write_report
from clipjax.log.run_log import Dispatched, RunLog
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.prepare import Prepared, prepare
from clipjax.refresh import make_refreshes, refreshed
from clipjax.step import State, init_state
from clipjax.workdir import check_shared, claim, versions


def train(config: ConfigDict, workdir: str | Path, profile: str | None = None) -> State:
    """Trains to `config.total_samples`, going on from the newest checkpoint in `workdir` if there is one.

    Args:
      config: as `load_config` gives it.
      workdir: the run's directory, made if it is not there; processes of a job share it.
      profile: steps to trace, see `Profile`.

    Returns:
      The final state.

    Raises:
      UserError: settings that cannot work, or a run that cannot go on (non-finite loss, too many bad records).
      Stopped: after a signal, when everything is saved.
    """
    workdir = Path(workdir)
    with (
        contextlib.closing(Clock()) as clock,
        contextlib.closing(Profile(profile, workdir)) as trace,
        Watchdog(config.run, workdir) as watchdog,
    ):
        tokenizer = run_tokenizer(config)
        check_vocabulary(tokenizer, config)
        stream = Stream(config)
        prepared = prepare(config, make_mesh(config.mesh), stream.epoch)
        for remark in prepared.remarks if is_primary() else ():
            notify(remark)
        run = Run(prepared, tokenizer, workdir, profile, clock, watchdog)
        run.to_the_end(stream, trace)
        run.report()
        return run.state


class Run:
    """A run between its steps: its state, its clock (`samples`), and all that happens at a sample count.

    Args:
      prepared: the config on its mesh.
      tokenizer: of the texts, for the encoder and the checkpoints.
      workdir: the run's directory.
      profile: steps to trace; all processes must have the same.
      clock: measures where the time goes.
      watchdog: ends a run that hangs.
    """

    def __init__(
        self,
        prepared: Prepared,
        tokenizer: Tokenizer,
        workdir: Path,
        profile: str | None,
        clock: Clock,
        watchdog: Watchdog,
    ):
        self._prepared, self._config, self._workdir = prepared, prepared.config, workdir
        self._clock, self._watchdog = clock, watchdog
        config, mesh = prepared.config, prepared.mesh
        self.share = batch_share(mesh, config.batch_size)
        self._encoder = Encoder(prepared.model, config, tokenizer, mesh)
        self._refreshes = make_refreshes(config)
        self._evaluators = make_evaluators(config.evals, self._encoder)
        self._agree(profile)
        self.samples = from_primary(checkpoint.newest(workdir / "checkpoints") or 0)
        self._packed, self._made_by = checkpoint.pack_tokenizer(tokenizer), versions()
        self.state, counters = self._first_state()
        self.tally = Tally(mesh, self.share, counters)
        work = prepared.flops_per_sample
        self.log = RunLog(config, workdir, self.samples, mesh, work, self.share, self.tally, clock)
        if self.samples >= config.total_samples and is_primary():
            seen = f"{self.samples:,}"
            print(f"This run is finished: it has seen {seen} samples. Its report is written again.")

    def _agree(self, profile: str | None) -> None:
        """Refuses to go on with processes that were given different things."""
        barrier("config read", self._config.run.start_timeout)
        parts = json.loads(self._config.to_json())
        check_same("config", {k: json.dumps(v, sort_keys=True) for k, v in parts.items()})
        # It decides when a step is waited for.
        check_same("command line", {"--profile": str(profile)})

    def _first_state(self) -> tuple[State, dict[str, int]]:
        """The state to begin with, and the data counters; the workdir is this run's from here on."""
        prepared, config = self._prepared, self._config
        pretrained = {} if self.samples else load_pretrained(config, prepared.state.params)
        on_primary(lambda: claim(self._workdir, config))
        check_shared(self._workdir, config)
        keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every
        once = prepared.unchanged if config.checkpoint.frozen_once else frozenset()
        token = from_primary(secrets.randbits(31))
        self._checkpoints = Checkpointer(
            self._workdir, keep=keep, keep_every=keep_every, once=once, token=token
        )
        if self.samples:
            state, counters = restore(self._checkpoints, self.samples, prepared.state)
        else:
            model, optimizer, mesh = prepared.model, prepared.optimizer, prepared.mesh
            state = init_state(model, config, optimizer, mesh, pretrained)
            counters = dict.fromkeys(COUNTERS, 0)
        check_apart(prepared, state.params)
        return state, counters

    def to_the_end(self, stream: Stream, trace: Profile) -> None:
        """Trains until `total_samples`, or until a signal, and saves.

        Raises:
          UserError: the run cannot go on.
          Stopped: after a signal.
        """
        with (
            contextlib.closing(self.log),
            contextlib.closing(self._checkpoints),
            jax.set_mesh(self._prepared.mesh),
            stop_signals() as stop,
            # Innermost: a process that fails alone must not wait for the others in what closes.
            guard(self._workdir),
        ):
            if self.samples == 0:
                self._refresh()
            self._clock.restart()
            for number, batch in enumerate(self._clock.batches(self._batches(stream)), 1):
                trace.before(number, self.log.settle)
                self._step(number, batch, stop.signum)
                trace.after(number, self.log.settle)
                self._between_steps()
            trace.close()
            with self._watchdog.pause("saving"):
                self._checkpoints.wait()

    def _batches(self, stream: Stream) -> Any:
        data = self._config.data
        return batches(
            stream,
            self._config.batch_size,
            self.samples,
            self._config.total_samples,
            threads=data.threads,
            workers=data.workers,
            prefetch=data.prefetch,
            host=self.share.part,
            hosts=self.share.parts,
        )

    def _step(self, number: int, batch: Mapping[str, np.ndarray], signum: int | None) -> None:
        """Dispatches a step; while it runs, the metrics of the one before are fetched."""
        placed = to_device(batch, batch_sharding(self._prepared.mesh))
        with self._clock.part("compile") if number == 1 else contextlib.nullcontext():
            self.state, metrics = self._prepared.step(self.state, placed)
        self._clock.dispatched(metrics["loss"])
        self.samples += self._config.batch_size
        self.log.record_ids(self.samples, batch["sample_id"])
        self.log.settle()
        sent = self.tally.send(batch, signum)
        self.log.hold(Dispatched(self.samples, metrics, batch["sample_id"], sent))

    def _between_steps(self) -> None:
        """What is due at this sample count, in the fixed order: metrics, refreshes, evaluators, checkpoint."""
        samples, size = self.samples, self._config.batch_size
        last, stopping = samples >= self._config.total_samples, self.tally.signum
        evaluators = [
            name
            for name in sorted(self._evaluators)
            if last or due(samples, self._config.evals[name].get("every"), size)
        ]
        saving = last or stopping or due(samples, self._config.checkpoint.every, size)
        if evaluators or saving or any(r.is_due(samples, size) for r in self._refreshes):
            self.log.settle()
        self._refresh()
        for name in evaluators:
            with self._clock.part("evaluate"), self._watchdog.pause(f"evaluating {name!r}"):
                self.log.evaluate(name, self._evaluators[name], self.state.averaged(), samples)
        if saving:
            with self._clock.part("save"), self._watchdog.pause("saving"):
                self._save()
        if stopping:
            with self._watchdog.pause("saving"):
                self._checkpoints.wait()
            raise Stopped(stopping, samples)
        self._watchdog.step_done(samples)

    def _refresh(self) -> None:
        for refresh in self._refreshes:
            if refresh.is_due(self.samples, self._config.batch_size):
                what = f"refreshing {refresh.name!r}"
                with self._clock.part("refresh"), self._watchdog.pause(what):
                    params = refreshed(
                        refresh, self.state.params, self._encoder, self.samples, self._prepared
                    )
                self.state = self.state.replace(params=params)

    def _save(self) -> None:
        meta = {
            "samples": self.samples,
            "counters": {k: n for k, n in self.tally.counters.items() if n},
            "config": json.loads(self._config.to_json()),
            "versions": self._made_by,
            "modules": used_modules(self._config),
        }
        state = self.state
        train_state = {"step": state.step, "optimizer": state.optimizer, "ema": state.ema}
        self._checkpoints.save(self.samples, state.params, train_state, meta, self._packed)

    def report(self) -> None:
        """Writes the run's page, with what its evaluators show."""
        with self._watchdog.pause("writing the report"):
            galleries = [
                g
                for evaluator in self._evaluators.values()
                if hasattr(evaluator, "galleries")
                for g in evaluator.galleries(self.state.averaged())
            ]
            if is_primary():
                write_report(self._workdir, galleries)


def check_vocabulary(tokenizer: Tokenizer | None, config: ConfigDict) -> None:
    """Refuses a text tower that lacks embeddings for some of the tokenizer's ids."""
    if tokenizer is None or "text" not in config.model:
        return
    size = config.model.text.get("vocab_size", tokenizer.vocab_size)
    if size < tokenizer.vocab_size:
        raise UserError(
            f"config.model.text.vocab_size = {size} is smaller than the tokenizer's vocabulary of "
            f"{tokenizer.vocab_size}; raise it to that."
        )


def restore(checkpoints: Checkpointer, samples: int, like: State) -> tuple[State, dict[str, int]]:
    """The state and the data counters of the checkpoint at `samples`, sharded as `like` says."""
    train_like = {"step": like.step, "optimizer": like.optimizer, "ema": like.ema}
    params, train_state, meta = checkpoints.restore(samples, like.params, train_like)
    state = State(train_state["step"], params, train_state["optimizer"], train_state["ema"])
    return state, {name: meta["counters"].get(name, 0) for name in COUNTERS}


def to_device(
    batch: Mapping[str, np.ndarray], sharding: jax.sharding.NamedSharding
) -> dict[str, jax.Array]:
    """Every field of a batch but those that stay on the host, as global arrays split over the mesh."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
        if name not in HOST_ONLY
    }
