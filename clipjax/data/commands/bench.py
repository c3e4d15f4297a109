"""`clipjax data bench`: samples per second of every stage and of the whole pipeline, and where the wall is."""

import itertools
import json
import os
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from rich.table import Table

from clipjax import __version__
from clipjax.data.commands.bench_stages import Pipeline, Setting, Stages, rate
from clipjax.data.commands.named import Named
from clipjax.errors import UserError
from clipjax.log.console import console
from clipjax.log.writers import replace_file

ROUNDS = 3
STAGES = {
    "read": "a record at random",
    "decode": "no finer than its view needs",
    "augment": "crop, resize, colours of decoded images",
    "tokenize": "caption policy and tokenizer",
}
WHOLE, LIMIT = "whole sample", "limit"


def bench(data: Named, seconds: float = 2.0, output: str | None = None) -> int:
    """Times the stages of a sample side by side, best of `ROUNDS` interleaved rounds, and prints a table.

    Each stage and the whole sample run in one thread; then the training pipeline with threads and with worker
    processes. The limit is libjpeg-turbo alone, decoding whole images on every core.

    Args:
      data: the sources; a config also says what is done with them.
      seconds: for each line of the table.
      output: a JSON file of all that is printed.

    Returns:
      0.

    Raises:
      UserError: an output that is there already, or records that cannot be used.
    """
    if not seconds > 0:
        raise UserError(f"--seconds must be above 0, not {seconds:g}.")
    if output and os.path.exists(output):
        raise UserError(f"{output!r} is there already; choose another --json, or remove it.")
    stream = data.stream()
    stages, places = Stages(stream), itertools.count()
    work: dict[str, Callable[[int], Any]] = {
        "read": lambda _: stages.read(next(places)),
        "decode": stages.decode,
        "augment": stages.augment,
        "tokenize": stages.tokenize,
        WHOLE: lambda _: stream[next(places)],
    }
    if stages.jpegs:
        work[LIMIT] = stages.decode_all
    rates = dict.fromkeys(work, 0.0)
    for _ in range(ROUNDS):
        for name, function in work.items():
            rates[name] = max(rates[name], rate(function, seconds / ROUNDS))
    cores = len(os.sched_getaffinity(0))
    batch_size = min(64, max(1, round(rates[WHOLE] * seconds / ROUNDS / 8)))
    pipelines = {s: Pipeline(stream, s, batch_size) for s in settings(cores)}
    speeds = dict.fromkeys(pipelines, 0.0)
    for _ in range(ROUNDS):
        for setting, pipeline in pipelines.items():
            speeds[setting] = max(speeds[setting], pipeline.rate(seconds / ROUNDS))
    side, view = median(stages.sides), stages.size
    sentence = wall(rates, speeds, cores, side, view)
    _print(rates, speeds, cores, sentence)
    if output:
        found = {
            "clipjax": __version__,
            "sources": list(data.entries),
            "cores": cores,
            "samples_per_second": rates,
            "pipeline": [s._asdict() | {"samples_per_second": v} for s, v in speeds.items()],
            "limit": rates[LIMIT] * cores if LIMIT in rates else None,
            "wall": sentence,
        }
        replace_file(output, json.dumps(found, indent=1) + "\n")
    return 0


def settings(cores: int) -> list[Setting]:
    """Threads of this process, and worker processes: 1, 2, 4, ... up to the cores."""
    numbers = sorted({1, *(n for k in range(16) if (n := 2**k) < cores), cores})
    return [*(Setting(n, 0) for n in numbers), *(Setting(1, n) for n in numbers)]


def wall(
    rates: Mapping[str, float],
    speeds: Mapping[Setting, float],
    cores: int,
    side: float,
    view: int,
) -> str:
    """One sentence: which stage takes longest, and what can be done.

    Args:
      rates: samples a second of the `STAGES` and of the whole sample, in one thread.
      speeds: of the pipeline with some settings.
      cores: that there are.
      side: pixels of the images' shorter sides, the median.
      view: pixels of a view's side.
    """
    best = max(speeds, key=speeds.__getitem__)
    slowest = min(STAGES, key=rates.__getitem__)
    share = rates[WHOLE] / rates[slowest]
    gain = speeds[best] / rates[WHOLE]
    if side > 2 * view:
        decoding = (
            f"store smaller images (their shorter side is {side:.0f} pixels, and a view has {view})"
        )
    else:
        decoding = "give the data more processes or cores, or store JPEGs if these are others"
    advice = {
        "read": "write ArrayRecords to a local disk once (clipjax data convert), or give the source a window",
        "decode": decoding,
        "augment": "leave out colour changes or rotation (features.image.augment), or interpolate bilinearly",
        "tokenize": "use fewer or shorter captions a sample (features.text.captions)",
    }[slowest]
    where = (
        f"The wall is the stage {slowest!r}, {share:.0%} of a sample's time in one thread: {advice}"
    )
    if cores > 1 and gain < 0.5 * cores:
        where = (
            f"The wall is the pipeline around the samples: {cores} cores make {gain:.2f} times as much as one thread, "
            f"of which the stage {slowest!r} takes {share:.0%}; the cores are busy otherwise, or the samples tiny"
        )
    use = f"--config.data.threads={best.threads} --config.data.workers={best.workers}"
    return f"{where}; fastest here: {use}"


def _print(
    rates: Mapping[str, float], speeds: Mapping[Setting, float], cores: int, sentence: str
) -> None:
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "samples/s", "ms", "share", ""):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    for name in (*STAGES, WHOLE):
        note = STAGES.get(name, "one thread")
        share = f"{rates[WHOLE] / rates[name]:.0%}"
        table.add_row(name, f"{rates[name]:,.0f}", f"{1000 / rates[name]:.3f}", share, note)
        if name == "tokenize":
            rest = 1 - sum(rates[WHOLE] / rates[stage] for stage in STAGES)
            note = "of a sample: filter, further views and features, book-keeping"
            table.add_row("rest", "", f"{1000 * rest / rates[WHOLE]:.3f}", f"{rest:.0%}", note)
    for setting, speed in speeds.items():
        processes = f"data.workers={setting.workers}"
        how = processes if setting.workers else f"data.threads={setting.threads}"
        share = f"{speed / rates[WHOLE]:.2f} x"
        table.add_row("pipeline", f"{speed:,.0f}", f"{1000 / speed:.3f}", share, how)
    if LIMIT in rates:
        limit = rates[LIMIT] * cores
        note = f"libjpeg-turbo alone, whole images, {cores} cores"
        share = f"{max(speeds.values()) / limit:.0%}"
        table.add_row(LIMIT, f"{limit:,.0f}", f"{1000 / limit:.3f}", share, note)
    out.print(table)
    if LIMIT in rates:
        out.print("The limit's share is what the fastest pipeline reaches of it.", style="dim")
    else:
        out.print("No JPEGs among the images, so there is no limit to compare with.", style="dim")
    out.print(sentence, markup=False, highlight=False, soft_wrap=True)
