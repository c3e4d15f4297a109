"""VESL (experiments/cloc/vesl) over a data set: records in, the same records with regions out, as ArrayRecord shards.

A piece of work is a shard, a range of the source's order, as in reshard.py: its worker reads the records, labels them a
batch at a time and writes them. Models are loaded once in a process.
"""

import collections
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms import combiners
from common import COUNTS, conditions, merge, with_filters
from reshard import Cut, WriteShard
from resume import Progress, finish, note_shard

from clipjax import __version__
from clipjax.data.shards import count_shards, fingerprint, parse_size
from clipjax.data.sources.files import is_remote
from clipjax.data.targets import make_target
from clipjax.errors import UserError
from experiments.cloc.vesl.label import Labeller

TO = "array_record"  # regions are arrays and lists of texts, which other layouts would change


class Opened:
    """What a process opens once: the source, and the models. A class, because `Shared` holds it weakly."""

    def __init__(self, plan: Mapping[str, Any], target: Any, models: Sequence[Any]):
        # The models see all fields; the labeller leaves out what is to be left out.
        self.cut = Cut({**plan, "drop": ()}, target)
        self.label = Labeller(
            *models, threshold=plan["threshold"], phrases=plan["phrases"], drop=plan["drop"]
        )


class LabelShard(WriteShard):
    """Number of a shard -> its line of the summary; the shard is there whole or not at all.

    Args:
      plan: see `make_plan`.
      target: of `make_target`.
      output: the folder.
      models: captioner, tagger and detector, not loaded.
    """

    def __init__(self, plan: Mapping[str, Any], target: Any, output: str, models: Sequence[Any]):
        super().__init__(plan, target, output)
        self._models = list(models)

    def setup(self) -> None:
        """Opens the source and loads the models, or takes what another thread has opened."""
        plan, target, models = self._plan, self._target, self._models
        self._opened = self._shared.acquire(lambda: Opened(plan, target, models))

    def process(self, number: int) -> Iterator[dict[str, Any]]:
        """Labels and writes the shard, and then notes that it is there.

        Raises:
          UserError: see `WriteShard` and `Labeller`.
        """
        self._counts: collections.Counter[str] = collections.Counter()
        for line in super().process(number):
            line = {**line, "counts": dict(sorted(self._counts.items()))}
            note_shard(self._output, line)
            for name, count in line["counts"].items():
                Metrics.counter(COUNTS, name).inc(count)
            yield line

    def _records(
        self,
        number: int,
        left_out: collections.Counter[str],
        dropped: collections.Counter[str],
    ) -> Iterator[dict[str, Any]]:
        length, shards = self._plan["records"], self._plan["shards"]
        places = iter(range(number * length // shards, (number + 1) * length // shards))
        while batch := list(itertools.islice(places, self._plan["batch"])):
            records = []
            for place in batch:
                fields, reason, _ = self._opened.cut.read(place)
                if fields is None:
                    left_out[reason] += 1
                else:
                    records.append(fields)
            for labelled in self._opened.label(records):
                if labelled.record is None:
                    left_out[labelled.reason] += 1
                    continue
                self._counts.update(labelled.counts)
                dropped.update(labelled.dropped)
                yield labelled.record


def make_plan(
    entries: Mapping[str, Mapping[str, Any]],
    lengths: Mapping[str, int],
    models: Mapping[str, Mapping[str, Any]],
    threshold: float,
    phrases: int,
    batch: int,
    shards: int | None = None,
    shard_size: str | None = None,
    filters: Sequence[str] = (),
    remove: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> dict[str, Any]:
    """All that decides the shards' bytes. The source is opened to see how large its records are.

    Args:
      entries, lengths: of one source, see `common.Job`.
      models: "captioner", "tagger", "detector" -> kind and settings.
      threshold: see `Labeller`.
      phrases: see `Labeller`.
      batch: records that the models see at once.
      shards, shard_size: their number, or such as "256MB"; one of them.
      filters: `NAME=VALUE` each.
      remove: outputs of filter and dedup jobs, whose records are left out.
      drop: fields to leave out.

    Raises:
      UserError: arguments that mean nothing.
    """
    if len(entries) != 1:
        raise UserError(
            "VESL takes one source; name one, or choose one of the config's with --source."
        )
    if (shards is None) == (shard_size is None):
        raise UserError("Give one of --shards and --shard-size.")
    if "image" in drop:
        raise UserError("The field 'image' cannot be dropped.")
    if not 0 <= threshold < 1:
        raise UserError(f"--threshold must be at least 0 and less than 1, not {threshold}.")
    if phrases < 1 or batch < 1:
        raise UserError("--phrases and --batch must be at least 1.")
    ((name, entry),) = entries.items()
    given = with_filters(entry, filters)
    conditions(given, name)
    plan = {
        "source": name,
        "entry": {
            k: v for k, v in entry.items() if k not in ("weight", "captions", "filter", "window")
        },
        "records": lengths[name],
        **models,
        "threshold": threshold,
        "phrases": phrases,
        "batch": batch,
        "shuffle": None,
        "filter": given,
        "remove": [f if is_remote(f) else os.path.abspath(f) for f in remove],
        "drop": sorted(drop),
    }
    target = make_target(TO)
    sample, looked = Cut({**plan, "drop": ()}, target).sample()
    size = sum(map(target.size, sample)) / looked * lengths[name]
    wanted = parse_size(shard_size or "256MB")
    return {
        **plan,
        "shards": count_shards(lengths[name], size, wanted, shards, 1),
        "sample": fingerprint(sample),
    }


def build(
    pipeline: Any, plan: Mapping[str, Any], progress: Progress, models: Sequence[Any]
) -> None:
    """Adds the job to a pipeline: the shards that are missing, and then the summary.

    Args:
      pipeline: Beam's.
      plan: of `make_plan`.
      progress: of its output.
      models: captioner, tagger and detector, not loaded.
    """
    missing = [n for n in range(plan["shards"]) if n not in progress.done]
    label = LabelShard(plan, make_target(TO), progress.output, models)
    done = list(progress.done.values())
    _ = (
        pipeline
        | "Missing shards" >> beam.Create(missing)
        | "Share out" >> beam.Reshuffle()
        | "Label" >> beam.ParDo(label)
        | "All lines" >> combiners.ToList()
        | "Summary" >> beam.Map(_summarise, done, dict(plan), progress.output)
    )


def _summarise(
    new: Sequence[Mapping[str, Any]],
    done: Sequence[Mapping[str, Any]],
    plan: Mapping[str, Any],
    output: str,
) -> None:
    lines = sorted([*done, *new], key=lambda line: line["shard"])
    keys = ("records", "bytes", "left_out", "dropped", "counts")
    total = merge({k: line[k] for k in keys} for line in lines)
    seen = total["records"] + sum(total["left_out"].values())
    if seen != plan["records"] or [line["shard"] for line in lines] != list(range(plan["shards"])):
        raise RuntimeError(
            f"{seen:,} of {plan['records']:,} records arrived; this is a mistake of this program"
        )
    facts = {
        "job": "vesl",
        "clipjax": __version__,
        "plan": json.loads(json.dumps(plan, default=repr)),
        "written": total["records"],
        "bytes": total["bytes"],
    }
    facts |= {k: dict(sorted(total[k].items())) for k in ("left_out", "dropped", "counts")}
    finish(output, facts | {"shards": lines})
