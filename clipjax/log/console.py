"""Progress on the console: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

_WINDOW = 30.0  # seconds the speed is averaged over


def console() -> Console:
    """A console that cuts nothing off: a file or a pipe is as wide as the tables want."""
    wide = Console()
    return wide if wide.is_terminal else Console(width=200)


class ConsoleWriter:
    """Shows samples seen, samples/s, the time left and the loss; a writer like the others.

    A write with `loss` moves the progress; one without (an evaluator's) is printed, one metric a
    line. On a terminal this is a rich progress bar; otherwise (a file, a pipe, TERM=dumb) a plain
    line about every `interval` seconds, and the last one always.

    Args:
        total_samples: where the run ends.
        start_samples: where it starts (a resumed run's clock); speed is counted from there.
        stream: standard output by default.
        interval: seconds between plain lines.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        total_samples: int,
        *,
        start_samples: int = 0,
        stream: TextIO | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._interval, self._clock = total_samples, interval, clock
        self._samples, self._loss = start_samples, math.nan
        self._seen: deque[tuple[float, int]] = deque()
        self._stream = stream or sys.stdout
        self._shown_at, self._pending = -math.inf, False
        self._bar: Progress | None = None
        console = Console(file=self._stream)
        if self._stream.isatty() and not console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.percentage:>5.1f}%"),
                BarColumn(),
                TextColumn("{task.fields[line]}"),
                console=console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(
                "", total=total_samples, completed=start_samples, line=""
            )
            self._bar.start()

    def write(self, samples: int, step: int, metrics: Mapping[str, float]) -> None:
        """Shows one moment."""
        if "loss" not in metrics:
            self._print_results(samples, metrics)
            return
        now = self._clock()
        self._samples, self._loss = samples, float(metrics["loss"])
        self._seen.append((now, samples))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()
        self._pending = True
        if self._bar is not None:
            self._bar.update(self._task, completed=samples, line=self._line())
        elif now - self._shown_at >= self._interval:
            self._print_line(now)

    def close(self) -> None:
        """Shows the last state and leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
        elif self._pending:
            self._print_line(self._clock())

    @property
    def samples_per_second(self) -> float:
        """Speed over the last half minute or so; NaN until it is known."""
        if len(self._seen) < 2:
            return math.nan
        (t0, s0), (t1, s1) = self._seen[0], self._seen[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else math.nan

    def _line(self) -> str:
        speed = self.samples_per_second
        left = (self._total - self._samples) / speed if speed > 0 else math.nan
        return (
            f"{self._samples:,}/{self._total:,} samples"
            f"  {'-' if math.isnan(speed) else format(speed, ',.0f')} samples/s"
            f"  ETA {format_seconds(left)}  loss {self._loss:.4f}"
        )

    def _print_line(self, now: float) -> None:
        percent = 100 * self._samples / self._total if self._total else 100.0
        print(f"{percent:5.1f}%  {self._line()}", file=self._stream, flush=True)
        self._shown_at, self._pending = now, False

    def _print_results(self, samples: int, metrics: Mapping[str, float]) -> None:
        width = max(map(len, metrics), default=0)
        lines = [f"at {samples:,} samples"]
        lines += [f"  {key:<{width}}  {float(value):.4f}" for key, value in metrics.items()]
        if self._bar is not None:
            self._bar.console.print(Text("\n".join(lines)))
        else:
            print("\n".join(lines), file=self._stream, flush=True)


def format_seconds(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on; `-:--` when it is not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
