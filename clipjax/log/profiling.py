"""Where a run's time goes: its split over input, compute, saving and evaluation, and traces for the profiler."""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from clipjax.errors import UserError

PARTS = ("input_wait", "compile", "refresh", "evaluate", "save")


class Clock:
    """Splits wall time, as the thread of the train loop sees it, and never waits for a device itself.

    The loop dispatches ahead: while step k computes, the host already fetches batch k + 1. So the time spent asking for
    a batch is lost only as far as the devices have nothing left to do. Another thread waits for each step's result and
    notes when it was there; asking for a batch counts as `input_wait` from that moment on.

      input_wait  no step was running and the next batch was not there yet
      compile     dispatch of this process's first step: tracing and compilation
      evaluate    evaluators, with the compilation of their own
      save        what a checkpoint holds the loop up (its writing goes on in the background)
      step        all the rest: steps computing, and the loop's own work

    Args:
      clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._began = self._mark = clock()
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._useful = 0.0
        self._finished: Future[float] | None = None  # when the newest step's result was there
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="clock")

    def restart(self) -> None:
        """The loop begins: what was before counts against goodput only."""
        self._mark = self._clock()

    def batches(self, source: Iterable[Any]) -> Iterator[Any]:
        """The items of `source`; measures the waiting for them."""
        iterator = iter(source)
        while True:
            asked = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._spent["input_wait"] += self._idle(asked, self._clock())
            yield batch

    def dispatched(self, result: jax.Array) -> None:
        """A step is on its way; `result` is something that it computes."""
        self._finished = self._waiter.submit(self._wait_for, result)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside counts as `name` of `PARTS`."""
        start = self._clock()
        yield
        self._spent[name] += self._clock() - start

    def split(self) -> dict[str, float]:
        """The parts of the time since the last call as fractions `time/...`, whose sum is 1, and `goodput`.

        Goodput is the share of `time/step` in all time since this process began to set the run up: what restarts,
        restoring, compilation, waiting for data, evaluation and saving have left for training.
        """
        now = self._clock()
        window = max(now - self._mark, 1e-9)
        step = max(window - sum(self._spent.values()), 0.0)
        self._useful += step
        shares = {f"time/{name}": seconds / window for name, seconds in self._spent.items()}
        self._mark, self._spent = now, dict.fromkeys(PARTS, 0.0)
        return {
            "time/step": step / window,
            **shares,
            "goodput": self._useful / max(now - self._began, 1e-9),
        }

    def close(self) -> None:
        """Lets the waiting thread go."""
        self._waiter.shutdown(wait=False)

    def _idle(self, start: float, end: float) -> float:
        """How much of that time the devices had nothing to do."""
        if self._finished is None:
            return end - start
        if not self._finished.done():
            return 0.0
        return max(0.0, end - max(start, self._finished.result()))

    def _wait_for(self, result: jax.Array) -> float:
        with contextlib.suppress(
            Exception
        ):  # the loop meets the same error when it fetches the metrics
            result.block_until_ready()
        return self._clock()


class Profile:
    """Writes a trace of some steps to `workdir/profile`, for TensorBoard's profiler, xprof or Perfetto.

    Steps are counted from 1 at the start of this process, so that a run that goes on can be profiled just as one that
    begins; step 1 contains the compilation. Only process 0 writes. Before the first and after the last traced step
    the devices are waited for, so that the trace has these steps and no others.

    Args:
      steps: "A-B", or "A" for one step; None for no trace.
      workdir: the run's directory.

    Raises:
      UserError: steps that are no such range.
    """

    def __init__(self, steps: str | None, workdir: Path):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", steps.strip()) if steps is not None else None
        self._first, self._last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if steps is not None and not 1 <= self._first <= self._last:
            raise UserError(
                f"--profile={steps} must be steps of this start, A or A-B from 1 on, such as --profile=10-14."
            )
        self._directory, self._running = workdir / "profile", False

    def before(self, number: int, settle: Callable[[], None]) -> None:
        """Call before step `number` is dispatched; `settle` waits for the steps before it."""
        if number == self._first:
            settle()
            if jax.process_index() == 0:
                jax.profiler.start_trace(self._directory)
                self._running = True

    def after(self, number: int, settle: Callable[[], None]) -> None:
        """Call after step `number` was dispatched."""
        if number == self._last:
            settle()
            self.close()

    def close(self) -> None:
        """Writes what was traced, also where the run ended sooner."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
