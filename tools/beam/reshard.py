"""A data set in another layout and other shards, as `clipjax data convert` writes them, byte for byte.

A piece of work is a shard. Which records it has follows from its number (a range of the source's order, or with a seed
of a keyed permutation), so its worker reads them itself: no image goes through the runner's shuffle, and a worker
holds a record at a time. In random order that costs a read at random for every record, which is what ArrayRecord and
indexed tars are for; Parquet costs a row group a record, so write it as ArrayRecord first, and then shuffle that.
"""

import collections
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared

from clipjax import __version__
from clipjax.data.commands.shards import Records, count_shards, parse_size
from clipjax.data.commands.targets import make_target
from clipjax.data.sources.files import filesystem, is_remote
from clipjax.errors import UserError
from tools.beam.common import (
    COUNTS,
    Job,
    Removed,
    check_removed,
    conditions,
    join,
    merge,
    read,
    with_filters,
    write_summary,
)
from tools.beam.filtering import first_failing

LISTED = "in a list of --remove"


class Cut(Records):
    """The records of a source in their new order, without those that a condition or a list leaves out.

    Args:
      plan: what decides the shards, see `build`.
      target: of `make_target`.
    """

    def __init__(self, plan: Mapping[str, Any], target: Any):
        super().__init__(plan["source"], plan["entry"], target, plan["shuffle"], plan["drop"])
        self._conditions = conditions(plan["filter"], plan["source"])
        self._removed = Removed(plan["remove"], plan["source"], len(self._source))

    def read(self, place: int) -> tuple[dict[str, Any] | None, str, list[str]]:
        """(fields, "", names of dropped ones), or (None, why it is left out, []).

        Raises:
          UserError: the layout cannot hold a field, or the files cannot be read.
        """
        record, reason = self.raw(place)
        return (None, reason, []) if record is None else self.fit(record)

    def raw(self, place: int) -> tuple[dict[str, Any] | None, str]:
        """(the record as it is, ""), or (None, why it is left out)."""
        index = place if self._order is None else self._order.draw(place, 0)[1]
        if index in self._removed:
            return None, LISTED
        record, reason = read(self._source, index)
        reason = reason or first_failing(record, self._conditions)
        return (None, reason) if reason else (record, "")


class WriteShard(beam.DoFn):
    """Number of a shard -> its line of the summary; the shard is there whole or not at all.

    Attributes:
      counted: what the line counts by name.
    """

    counted: tuple[str, ...] = ("left_out", "dropped")

    def __init__(self, plan: Mapping[str, Any], target: Any, output: str):
        self._plan, self._target, self._output = dict(plan), target, output
        self._shared = Shared()

    def setup(self) -> None:
        """Opens the source, or takes what another thread has opened."""
        self._cut = self._shared.acquire(lambda: Cut(self._plan, self._target))

    def process(self, number: int) -> Iterator[dict[str, Any]]:
        """Reads the shard's records in order, and writes them.

        Raises:
          UserError: see `Cut`, or the shard cannot be written.
        """
        name = f"{number:0{max(5, len(str(self._plan['shards'] - 1)))}d}{self._target.suffix}"
        counts: dict[str, collections.Counter[str]] = {
            kind: collections.Counter() for kind in self.counted
        }
        try:
            with _folder_for(self._output) as folder:
                path = Path(folder) / name
                written = self._target.write(self._records(number, counts), path)
                size = path.stat().st_size
                files = [p.name for p in self._target.files(path)]
                for file in reversed(files):  # an index before its tar
                    _deliver(os.path.join(folder, file), join(self._output, file))
            line = {"shard": number, "files": files, "records": written, "bytes": size}
            line |= {kind: dict(sorted(found.items())) for kind, found in counts.items()}
            self._note(line)
        except OSError as error:
            raise UserError(f"The shard {name!r} cannot be written: {error}.") from error
        Metrics.counter(COUNTS, "written").inc(written)
        for kind in set(counts) - {"dropped"}:
            for reason, count in counts[kind].items():
                Metrics.counter(COUNTS, reason).inc(count)
        yield line

    def _note(self, line: Mapping[str, Any]) -> None:
        """A shard is whole; jobs that go on where they were stopped write that down."""

    def _places(self, number: int) -> range:
        length, shards = self._plan["records"], self._plan["shards"]
        return range(number * length // shards, (number + 1) * length // shards)

    def _records(
        self, number: int, counts: Mapping[str, collections.Counter[str]]
    ) -> Iterator[dict[str, Any]]:
        for place in self._places(number):
            fields, reason, dropped = self._cut.read(place)
            if fields is None:
                counts["left_out"][reason] += 1
            else:
                counts["dropped"].update(dropped)
                yield fields


def _folder_for(output: str) -> Any:
    """A temporary folder from which files can be put into `output`: inside it, if it is local."""
    if is_remote(output):
        return tempfile.TemporaryDirectory()
    return tempfile.TemporaryDirectory(dir=output, prefix=f".part-{uuid.uuid4().hex}")


def _deliver(file: str, path: str) -> None:
    if is_remote(path):
        system, inner = filesystem(path)
        system.put_file(file, inner)
    else:
        os.replace(file, path)


def build(
    pipeline: Any,
    job: Job,
    to: str = "array_record",
    shards: int | None = None,
    shard_size: str | None = None,
    shuffle: int | None = None,
    filters: Sequence[str] = (),
    remove: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> None:
    """Adds the job to a pipeline. The source is opened here, too, to see how large records are and what they hold.

    Args:
      pipeline: Beam's.
      job: of one source.
      to: a key of `clipjax.data.commands.targets.TARGETS`.
      shards, shard_size: their number, or such as "256MB"; one of them.
      shuffle: seed of a random order; None: the source's order.
      filters: `NAME=VALUE` each.
      remove: outputs of filter and dedup jobs, whose records are left out.
      drop: fields to leave out.

    Raises:
      UserError: arguments that mean nothing.
    """
    target = make_target(to)
    plan = plan_of("reshard", job, shards, shard_size, filters, remove, drop) | {
        "to": to,
        "shuffle": shuffle,
    }
    sample, looked = Cut(plan, target).sample()
    target.look(sample)
    plan["shards"] = shards_of(plan, target, sample, looked, shards, shard_size)
    _ = (
        pipeline
        | "All shards" >> beam.Create([plan["shards"]])
        | "Shards" >> beam.FlatMap(lambda n: list(range(n)))
        | "Share out" >> beam.Reshuffle()
        | "Write" >> beam.ParDo(WriteShard(plan, target, job.output))
        | "All lines" >> combiners.ToList()
        | "Summary" >> beam.Map(_summarise, plan, job.output)
    )


def plan_of(
    what: str,
    job: Job,
    shards: int | None,
    shard_size: str | None,
    filters: Sequence[str],
    remove: Sequence[str],
    drop: Sequence[str],
) -> dict[str, Any]:
    """What is the same in the plans of all jobs that write shards; for the arguments see `build`.

    Raises:
      UserError: arguments that mean nothing.
    """
    if len(job.entries) != 1:
        raise UserError(
            f"{what} takes one source; name one, or choose one of the config's with --source."
        )
    if (shards is None) == (shard_size is None):
        raise UserError("Give one of --shards and --shard-size.")
    if "image" in drop:
        raise UserError("The field 'image' cannot be dropped.")
    ((name, entry),) = job.entries.items()
    length = job.lengths[name]
    given = with_filters(entry, filters)
    conditions(given, name)
    folders = [f if is_remote(f) else os.path.abspath(f) for f in remove]
    return {
        "source": name,
        "entry": {
            k: v for k, v in entry.items() if k not in ("weight", "captions", "filter", "window")
        },
        "records": length,
        "shuffle": None,
        "filter": given,
        # By their summaries, so that other lists in the same place are noticed.
        "remove": {f: _digest(check_removed(f, name, length)) for f in folders},
        "drop": sorted(set(drop)),
    }


def shards_of(
    plan: Mapping[str, Any],
    target: Any,
    sample: Sequence[Mapping[str, Any]],
    looked: int,
    shards: int | None,
    shard_size: str | None,
) -> int:
    """How many shards there shall be, see `count_shards`; `sample` was found among `looked` records."""
    size = sum(map(target.size, sample)) / looked * plan["records"]
    return count_shards(plan["records"], size, parse_size(shard_size or "256MB"), shards, 1)


def summary_of(
    lines: Sequence[dict[str, Any]],
    plan: Mapping[str, Any],
    job: str,
    counted: Sequence[str] = WriteShard.counted,
) -> dict[str, Any]:
    """The summary of a job that has written all its shards.

    Args:
      lines: of the shards, in any order.
      plan: of the job.
      job: its name.
      counted: what the lines count by name.
    """
    lines = sorted(lines, key=lambda line: line["shard"])
    total = merge({k: line[k] for k in ("records", "bytes", *counted)} for line in lines)
    seen = total["records"] + sum(total["left_out"].values())
    if seen != plan["records"] or [line["shard"] for line in lines] != list(range(plan["shards"])):
        raise RuntimeError(
            f"{seen:,} of {plan['records']:,} records arrived; this is a mistake of this program"
        )
    return {
        "job": job,
        "clipjax": __version__,
        "plan": dict(plan),
        "written": total["records"],
        "bytes": total["bytes"],
        **{kind: dict(sorted(total[kind].items())) for kind in counted},
        "shards": lines,
    }


def _digest(summary: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(summary).encode()).hexdigest()


def _summarise(lines: list[dict[str, Any]], plan: Mapping[str, Any], output: str) -> None:
    write_summary(output, summary_of(lines, plan, "reshard"))
