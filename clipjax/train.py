"""The train loop: the only one.

The order of things at a sample count is fixed: metrics of all steps so far are checked and written, then evaluators
run, then the checkpoint is taken, then the next step runs. A resumed run therefore repeats nothing and skips nothing.

In a job of several processes each of them runs this loop. They take the same decisions because they decide by the same
numbers: samples seen, metrics, and the tally of what happened in any of them.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from clipjax import checkpoint
from clipjax.batch import example_batch
from clipjax.checkpoint import Checkpointer, due
from clipjax.convert.pretrained import load_pretrained
from clipjax.cost import flops
from clipjax.data.pipeline import batches
from clipjax.data.stream import COUNTERS, Stream
from clipjax.data.tokenizers import Tokenizer, make_tokenizers
from clipjax.encode.encoder import Encoder
from clipjax.errors import UserError
from clipjax.evals import make_evaluators
from clipjax.fields import BATCH, HOST_ONLY
from clipjax.imports import used_modules
from clipjax.job.agreement import Tally, batch_share, by_first, check_same, from_first
from clipjax.job.distributed import barrier, first, tell
from clipjax.job.signals import Stopped, stop_signals
from clipjax.job.watchdog import Watchdog, guard
from clipjax.log.profiling import Clock, Profile
from clipjax.log.report import write_report
from clipjax.log.run_log import Dispatched, RunLog
from clipjax.mesh import batch_sharding, check_batch, make_mesh, remarks
from clipjax.models import boxed_params, make_model, model_parts
from clipjax.step import (
    State,
    abstract_state,
    init_state,
    make_losses,
    make_parts,
    make_step,
)
from clipjax.workdir import check_shared, claim, resolve, versions


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
        return _train(config, workdir, profile, clock, trace, watchdog)


def _train(
    config: ConfigDict,
    workdir: Path,
    profile: str | None,
    clock: Clock,
    trace: Profile,
    watchdog: Watchdog,
) -> State:
    tokenizer, region_tokenizer = make_tokenizers(config)
    check_vocabulary(tokenizer, config)
    size = config.model.image.size
    stream = Stream(config.data, config.preprocess, size, tokenizer, config.seed, region_tokenizer)
    config = resolve(config, stream.epoch)
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, mesh, config.grad_cache)
    share = batch_share(mesh, config.batch_size)
    model, optimizer, rate = make_parts(config)
    losses = make_losses(config.losses, mesh)
    step = jax.jit(make_step(model, losses, optimizer, config, rate), donate_argnums=0)
    encoder = Encoder(model, config, tokenizer, mesh)
    evaluators = make_evaluators(config.evals, encoder)

    like = abstract_state(model, config, optimizer, mesh)
    for remark in remarks(boxed_params(model, example_batch(config)), mesh) if first() else ():
        tell(remark)
    # This traces the whole step, so a mistake in any setting shows before the workdir is touched.
    work = flops_per_sample(config, losses, optimizer, rate, like)
    barrier("config read", config.run.start_timeout)
    check_same(
        "config",
        {k: json.dumps(v, sort_keys=True) for k, v in json.loads(config.to_json()).items()},
    )
    check_same("command line", {"--profile": str(profile)})  # it decides when a step is waited for
    samples = from_first(checkpoint.newest(workdir / "checkpoints") or 0)
    pretrained = {} if samples else load_pretrained(config, like.params)

    by_first(lambda: claim(workdir, config))
    check_shared(workdir, config)
    checkpoints = Checkpointer(
        workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
    )
    counters = dict.fromkeys(COUNTERS, 0)
    if samples:
        state, counters = restore(checkpoints, samples, like)
    else:
        state = init_state(model, config, optimizer, mesh, pretrained)
    del pretrained  # may be large

    tally = Tally(mesh, share, counters)
    run = RunLog(config, workdir, samples, mesh, work, share, tally, clock)
    packed, made_by = checkpoint.pack_tokenizer(tokenizer), versions()
    modules = used_modules(config)
    if samples >= config.total_samples and first():
        print(
            f"This run is finished: it has seen {samples:,} samples. Its report is written again."
        )

    def save() -> None:
        meta = {
            "samples": samples,
            "counters": {k: n for k, n in tally.counters.items() if n},
            "config": json.loads(config.to_json()),
            "versions": made_by,
            "modules": modules,
        }
        train_state = {"step": state.step, "optimizer": state.optimizer, "ema": state.ema}
        checkpoints.save(samples, state.params, train_state, meta, packed)

    source = batches(
        stream,
        config.batch_size,
        samples,
        config.total_samples,
        threads=config.data.threads,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        host=share.part,
        hosts=share.parts,
    )
    sharding = batch_sharding(mesh)
    with (
        contextlib.closing(run),
        contextlib.closing(checkpoints),
        jax.set_mesh(mesh),
        stop_signals() as stop,
        guard(
            workdir
        ),  # innermost: a process that fails alone must not wait for the others in what closes
    ):
        clock.restart()
        for number, batch in enumerate(clock.batches(source), 1):
            trace.before(number, run.settle)
            with clock.part("compile") if number == 1 else contextlib.nullcontext():
                state, metrics = step(state, to_device(batch, sharding))
            clock.dispatched(metrics["loss"])
            samples += config.batch_size
            run.record_ids(samples, batch["sample_id"])
            # The step just dispatched runs while the metrics of the one before are fetched.
            run.settle()
            sent = tally.send(batch, stop.signum)
            run.hold(Dispatched(samples, metrics, batch["sample_id"], sent))
            trace.after(number, run.settle)

            last, stopping = samples >= config.total_samples, tally.signum
            now = {
                n
                for n in evaluators
                if last or due(samples, config.evals[n].get("every"), config.batch_size)
            }
            saving = last or stopping or due(samples, config.checkpoint.every, config.batch_size)
            if now or saving:
                run.settle()
            for name in sorted(now):
                with clock.part("evaluate"), watchdog.pause(f"evaluating {name!r}"):
                    run.evaluate(name, evaluators[name], state.averaged(), samples)
            if saving:
                with clock.part("save"), watchdog.pause("saving"):
                    save()
            if stopping:
                with watchdog.pause("saving"):
                    checkpoints.wait()
                raise Stopped(stopping, samples)
            watchdog.step_done(samples)
        trace.close()
        with watchdog.pause("saving"):
            checkpoints.wait()
    with watchdog.pause("writing the report"):
        galleries = [
            g
            for evaluator in evaluators.values()
            if hasattr(evaluator, "galleries")
            for g in evaluator.galleries(state.averaged())
        ]
        if first():
            write_report(workdir, galleries)
    return state


def check_vocabulary(tokenizer: Tokenizer, config: ConfigDict) -> None:
    """Refuses a text tower that lacks embeddings for some of the tokenizer's ids."""
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
    """The fields that models and losses may read, as global arrays split over the mesh."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
        if name in BATCH and name not in HOST_ONLY
    }


def flops_per_sample(
    config: ConfigDict, losses: Any, optimizer: Any, rate: Any, state: State
) -> float:
    """FLOPs that training needs for one sample: without what is repeated to save memory (Chowdhery et al. 2022)."""
    plain = ConfigDict(config.to_dict(), type_safe=False)
    plain.grad_cache = 1
    for _, part in model_parts(plain.model):
        if "remat" in part:
            part.remat = "none"
    plain.model.attention = "einsum"  # what a fused kernel multiplies cannot be seen from outside
    step = make_step(make_model(plain.model), losses, optimizer, plain, rate)
    return flops.count(step, state, example_batch(config, config.batch_size)) / config.batch_size
