"""How a process ends that cannot go on: it hangs, it failed alone, or another process of its job is gone.

In a job of several processes the usual way out of an exception is closed: JAX and Orbax would wait for the others,
which wait in a collective for this one. So such a process says what happened and leaves at once; the last checkpoint is
whole.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from clipjax import checkpoint
from clipjax.errors import SharedError, TryAgainError, UserError
from clipjax.job.distributed import TRY_AGAIN, first_line, is_primary, notify
from clipjax.job.signals import Stopped

# Process 0 leaves last: the loss of its coordination service would abort the others before they can speak.
_LINGER = 3.0
# What JAX, gloo, NCCL and the coordination service say when a process on the other side has gone.
_GONE = (
    *("gloo", "heartbeat", "unavailable:", "coordination service", "coordinationservice"),
    *("connection reset", "connection closed", "socket closed", "remote process exited"),
)


class Watchdog:
    """Stops the process when nothing has moved for too long, and leaves the stacks of all threads behind.

    They go to standard error and to `workdir/stacks-PROCESS.txt`. A hang of one process holds up all of a job, so all
    of them end; the one whose stack differs is the one to look at.

    Args:
      settings: `run` of the config: `step_timeout` and `pause_timeout`, in seconds; 0 waits for ever.
      workdir: the run's directory.
    """

    def __init__(self, settings: Mapping[str, Any], workdir: Path):
        self._step, self._pause = settings["step_timeout"], settings["pause_timeout"]
        self._file = workdir / f"stacks-{jax.process_index()}.txt"
        self._end = threading.Event()
        self._expect("starting, up to the first step", self._pause)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def step_done(self, samples: int) -> None:
        """A step has finished; the next one has `step_timeout` from now."""
        self._expect(f"in the step after {samples:,} samples", self._step)

    @contextlib.contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Gives something other than a step `pause_timeout`; the step after it has `step_timeout` from its end."""
        self._expect(what, self._pause)
        yield
        self._expect(f"after {what}", self._step)

    def _expect(self, what: str, seconds: float) -> None:
        self._now = (
            what,
            seconds,
            time.monotonic(),
        )  # one assignment, so that the thread sees it whole

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            what, seconds, since = self._now
            if not seconds:
                faulthandler.cancel_dump_traceback_later()
                continue
            if time.monotonic() - since > seconds:
                self._expire(what, seconds)
            # Should a hang in C code hold the interpreter lock, this thread stands still too, but not faulthandler's.
            faulthandler.dump_traceback_later(seconds + 60, exit=True, file=sys.__stderr__)

    def _expire(self, what: str, seconds: float) -> None:
        faulthandler.dump_traceback_later(
            60, exit=True, file=sys.__stderr__
        )  # the disk may be what hangs
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        notify(
            f"No step has finished for {seconds:g} s ({what}), so this process stops; the stacks of its threads stand "
            f"above and in {self._file}. Start the same command again to go on from the last checkpoint; "
            "config.run.step_timeout and config.run.pause_timeout are how long it waits."
        )
        with contextlib.suppress(OSError), self._file.open("w") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        os._exit(TRY_AGAIN)


@contextlib.contextmanager
def guard(workdir: str | Path) -> Iterator[None]:
    """Ends this process of a job at once where it fails alone, or because another one is gone.

    What all processes raise together (SharedError, Stopped) passes, and so does everything in a process of its own.
    The status is 2 for a user's mistake, 75 where another process is gone or late, 1 for anything else.
    """
    try:
        yield
    except (SharedError, Stopped):
        raise
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        _leave(error, Path(workdir))


def _leave(error: BaseException, workdir: Path) -> None:
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)  # the disk may hang
    if isinstance(error, UserError):
        status = TRY_AGAIN if isinstance(error, TryAgainError) else 2
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        status, text = 128 + signal.SIGINT, "Interrupted."
    elif any(sign in str(error).lower() for sign in _GONE):
        samples = checkpoint.newest(workdir / "checkpoints")
        there = (
            "No checkpoint is there yet"
            if samples is None
            else f"The last checkpoint is at {samples:,} samples"
        )
        text = (
            f"Another process of this job is gone, so this one stops ({first_line(error)}). {there}; "
            "start the same command again in all processes to go on."
        )
        status = TRY_AGAIN
    else:
        traceback.print_exception(error)
        status, text = 1, "This process failed, and with it the job; the error stands above."
    notify(text)
    with contextlib.suppress(RuntimeError):  # no devices
        time.sleep(_LINGER if is_primary() else 0)
    os._exit(status)
