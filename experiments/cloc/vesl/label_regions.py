"""VESL (experiments/cloc/vesl) over a data set: records in, the same records with regions out, as ArrayRecord shards.

A piece of work is a shard, a range of the source's order, as in reshard.py: its worker reads the records, labels them a
batch at a time and writes them. Models are loaded once in a process.
"""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.transforms import combiners

from clipjax.data.bad import BadRecord
from clipjax.data.commands.shards import fingerprint
from clipjax.data.commands.targets import make_target
from clipjax.errors import UserError
from experiments.cloc.vesl.guard import AT_THE_END
from experiments.cloc.vesl.label import Labelled, Labeller
from tools.beam.common import Job
from tools.beam.reshard import Cut, WriteShard, plan_of, shards_of, summary_of
from tools.beam.resume import Progress, finish, note_shard

TO = "array_record"  # regions are arrays and lists of texts, which other layouts would change


class Whole(Cut):
    """Records with all their fields, as the models see them; what is to be dropped need not fit into the target."""

    def read(self, place: int) -> tuple[dict[str, Any] | None, str, list[str]]:
        """(the record, "", []), or (None, why it is left out, [])."""
        return *self.raw(place), []


class Opened:
    """What a process opens once: the source, and the models. A class, because `Shared` holds it weakly."""

    def __init__(self, plan: Mapping[str, Any], target: Any, models: Sequence[Any]):
        self.records = Whole(plan, target)
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

    counted = (*WriteShard.counted, "counts")

    def __init__(self, plan: Mapping[str, Any], target: Any, output: str, models: Sequence[Any]):
        super().__init__(plan, target, output)
        self._models = list(models)

    def setup(self) -> None:
        """Opens the source and loads the models, or takes what another thread has opened."""
        plan, target, models = self._plan, self._target, self._models
        self._opened = self._shared.acquire(lambda: Opened(plan, target, models))

    def _note(self, line: Mapping[str, Any]) -> None:
        note_shard(self._output, line)

    def _records(
        self, number: int, counts: Mapping[str, collections.Counter[str]]
    ) -> Iterator[dict[str, Any]]:
        """The shard's records with regions.

        Raises:
          UserError: see `Cut` and `Labeller`, or a model fails at the end, so that it may fail from now on.
        """
        places, row, why = iter(self._places(number)), 0, ""
        while batch := list(itertools.islice(places, self._plan["batch"])):
            records = []
            for record, reason, _ in map(self._opened.records.read, batch):
                if record is None:
                    counts["left_out"][reason] += 1
                else:
                    records.append(record)
            for labelled in self._opened.label(records):
                if labelled.record is not None:
                    row = 0
                elif labelled.broken:
                    row, why = row + 1, labelled.reason
                fields, reason = self._fit(labelled)
                if fields is None:
                    counts["left_out"][reason] += 1
                    continue
                counts["counts"].update(labelled.counts)
                counts["dropped"].update(labelled.dropped)
                yield fields
        if row >= AT_THE_END:
            raise UserError(
                f"The last {row} records of shard {number} have failed, and it is not written ({why}); mend the "
                "model, and start the job again to go on."
            )

    def _fit(self, labelled: Labelled) -> tuple[dict[str, Any] | None, str]:
        """(what is written, ""), or (None, why nothing is)."""
        if labelled.record is None:
            return None, labelled.reason
        try:
            return self._target.fit(labelled.record), ""
        except BadRecord as error:
            return None, str(error)


def make_plan(
    job: Job,
    models: Mapping[str, Any],
    captioner: Any,
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
      job: of one source.
      models: "captioner", "tagger", "detector" -> kind and settings; "model_files" -> what changes with their files.
      captioner: not loaded; its `check`, if it has one, gets records that are drawn from everywhere.
      threshold: see `Labeller`.
      phrases: see `Labeller`.
      batch: records that the models see at once.
      shards, shard_size: their number, or such as "256MB"; one of them.
      filters: `NAME=VALUE` each.
      remove: outputs of filter and dedup jobs, whose records are left out.
      drop: fields to leave out.

    Raises:
      UserError: arguments that mean nothing, or what `check` raises.
    """
    if not 0 <= threshold < 1:
        raise UserError(f"--threshold must be at least 0 and less than 1, not {threshold}.")
    if phrases < 1 or batch < 1:
        raise UserError("--phrases and --batch must be at least 1.")
    plan = plan_of("VESL", job, shards, shard_size, filters, remove, drop) | {
        **models,
        "threshold": threshold,
        "phrases": phrases,
        "batch": batch,
    }
    target = make_target(TO)
    whole = Whole(plan, target)
    records, looked = whole.sample()
    if hasattr(captioner, "check"):
        captioner.check(records)
    sample = [fields for fields, _, _ in map(whole.fit, records) if fields is not None]
    return {
        **plan,
        "shards": shards_of(plan, target, sample, looked, shards, shard_size),
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
    new: Sequence[dict[str, Any]],
    done: Sequence[dict[str, Any]],
    plan: Mapping[str, Any],
    output: str,
) -> None:
    finish(output, summary_of([*done, *new], plan, "vesl", LabelShard.counted))
