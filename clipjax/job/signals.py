"""SIGTERM and SIGINT ask a run to save and stop, they do not break it off."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGINT); its checkpoint is on disk. `status` is for the shell."""

    def __init__(self, signum: int, samples: int):
        super().__init__(f"Stopped by {signal.Signals(signum).name}; saved at {samples:,} samples.")
        self.status = 128 + signum


class Note:
    """Which signal has asked this process to stop; 0 for none."""

    signum = 0


@contextlib.contextmanager
def stop_signals() -> Iterator[Note]:
    """While inside, SIGTERM and SIGINT only leave a note; a second one of them works as usual."""
    note = Note()
    before = {}

    def take(signum: int, frame: Any) -> None:
        del frame
        note.signum = signum
        signal.signal(signum, before[signum])

    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            before[signum] = signal.signal(signum, take)
    except ValueError:
        pass  # not the main thread, where signals are not ours to catch
    try:
        yield note
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
