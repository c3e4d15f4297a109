"""A data set in another layout and other shards, as `clipjax data convert` writes them, byte for byte.

A piece of work is a shard. Which records it has follows from its number (a range of the source's order, or with a seed
of a keyed permutation), so its worker reads them itself: no picture goes through the runner's shuffle, and a worker
holds a record at a time. In random order that costs a read at random for every record, which is what ArrayRecord and
indexed tars are for; Parquet costs a row group a record, so write it as ArrayRecord first, and then shuffle that.
"""

import collections
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
from common import (
    COUNTS,
    Job,
    Removed,
    conditions,
    join,
    merge,
    read,
    with_filters,
    write_summary,
)
from filtering import first_failing

from clipjax import __version__
from clipjax.data.bad import BadRecord
from clipjax.data.shards import Records, count_shards, parse_size
from clipjax.data.sources.files import filesystem, is_remote
from clipjax.data.targets import make_target
from clipjax.errors import UserError

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
          UserError: the layout cannot hold a field.
        """
        index = place if self._order is None else self._order[place][1]
        if index in self._removed:
            return None, LISTED, []
        record, reason = read(self._source, index)
        reason = reason or first_failing(record, self._conditions)
        if reason:
            return None, reason, []
        dropped = [name for name in self.drop if name in record]
        try:
            fields = self.target.fit({k: v for k, v in record.items() if k not in dropped})
        except BadRecord as error:
            return None, str(error), []
        return fields, "", dropped


class WriteShard(beam.DoFn):
    """Number of a shard -> its line of the summary; the shard is there whole or not at all."""

    def __init__(self, plan: Mapping[str, Any], target: Any, output: str):
        self._plan, self._target, self._output = dict(plan), target, output
        self._shared = Shared()

    def setup(self) -> None:
        """Opens the source, or takes what another thread has opened."""
        self._cut = self._shared.acquire(lambda: Cut(self._plan, self._target))

    def process(self, number: int) -> Iterator[dict[str, Any]]:
        """Reads the shard's records in order, and writes them.

        Raises:
          UserError: the layout cannot hold a field, or the disk is full.
        """
        name = f"{number:0{max(5, len(str(self._plan['shards'] - 1)))}d}{self._target.suffix}"
        left_out: collections.Counter[str] = collections.Counter()
        dropped: collections.Counter[str] = collections.Counter()
        try:
            with _folder_for(self._output) as folder:
                path = Path(folder) / name
                records = self._records(number, left_out, dropped)
                written = self._target.write(records, path)
                size = path.stat().st_size
                files = [p.name for p in self._target.files(path)]
                for file in reversed(files):  # an index before its tar
                    _deliver(os.path.join(folder, file), join(self._output, file))
        except OSError as error:
            raise UserError(f"The shard {name!r} cannot be written: {error}.") from error
        for reason, count in left_out.items():
            Metrics.counter(COUNTS, reason).inc(count)
        Metrics.counter(COUNTS, "written").inc(written)
        counts = {"left_out": dict(left_out), "dropped": dict(dropped)}
        yield {"shard": number, "files": files, "records": written, "bytes": size, **counts}

    def _records(
        self,
        number: int,
        left_out: collections.Counter[str],
        dropped: collections.Counter[str],
    ) -> Iterator[dict[str, Any]]:
        length, shards = self._plan["records"], self._plan["shards"]
        for place in range(number * length // shards, (number + 1) * length // shards):
            fields, reason, gone = self._cut.read(place)
            if fields is None:
                left_out[reason] += 1
            else:
                dropped.update(gone)
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
      to: a key of `clipjax.data.targets.TARGETS`.
      shards, shard_size: their number, or such as "256MB"; one of them.
      shuffle: seed of a random order; None: the source's order.
      filters: `NAME=VALUE` each.
      remove: outputs of filter and dedup jobs, whose records are left out.
      drop: fields to leave out.

    Raises:
      UserError: arguments that mean nothing.
    """
    if len(job.entries) != 1:
        raise UserError(
            "reshard takes one source; name one, or choose one of the config's with --source."
        )
    if (shards is None) == (shard_size is None):
        raise UserError("Give one of --shards and --shard-size.")
    if "image" in drop:
        raise UserError("The field 'image' cannot be dropped.")
    ((name, entry),) = job.entries.items()
    length = job.lengths[name]
    given = with_filters(entry, filters)
    conditions(given, name)
    target = make_target(to)
    plan = {
        "source": name,
        "entry": {
            k: v for k, v in entry.items() if k not in ("weight", "captions", "filter", "window")
        },
        "records": length,
        "to": to,
        "shards": shards,
        "shuffle": shuffle,
        "filter": given,
        "remove": [f if is_remote(f) else os.path.abspath(f) for f in remove],
        "drop": sorted(drop),
    }
    sample, looked = Cut(plan, target).sample()
    target.look(sample)
    size = sum(map(target.size, sample)) / looked * length
    plan["shards"] = count_shards(length, size, parse_size(shard_size or "256MB"), shards, 1)
    _ = (
        pipeline
        | "All shards" >> beam.Create([plan["shards"]])
        | "Shards" >> beam.FlatMap(lambda n: list(range(n)))
        | "Share out" >> beam.Reshuffle()
        | "Write" >> beam.ParDo(WriteShard(plan, target, job.output))
        | "All lines" >> combiners.ToList()
        | "Summary" >> beam.Map(_summarise, plan, job.output)
    )


def _summarise(lines: list[dict[str, Any]], plan: Mapping[str, Any], output: str) -> None:
    lines = sorted(lines, key=lambda line: line["shard"])
    total = merge(
        {k: line[k] for k in ("records", "bytes", "left_out", "dropped")} for line in lines
    )
    seen = total["records"] + sum(total["left_out"].values())
    if seen != plan["records"] or [line["shard"] for line in lines] != list(range(plan["shards"])):
        raise RuntimeError(
            f"{seen:,} of {plan['records']:,} records arrived; this is a mistake of this program"
        )
    facts = {
        "written": total["records"],
        "bytes": total["bytes"],
        "left_out": dict(sorted(total["left_out"].items())),
        "dropped": dict(sorted(total["dropped"].items())),
    }
    head = {
        "job": "reshard",
        "clipjax": __version__,
        "plan": json.loads(json.dumps(plan, default=repr)),
    }
    write_summary(output, head | facts | {"shards": lines})
