"""Which records a filter turns down, by condition; nothing is written but the list and the counts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from clipjax.data.bad import BadRecord
from clipjax.data.filters import Filter
from clipjax.errors import UserError
from tools.beam.common import (
    SOURCE_BITS,
    Job,
    conditions,
    read_all_records,
    with_filters,
    write_removed,
)


def first_failing(record: Mapping[str, Any], filters: Sequence[tuple[str, Filter]]) -> str:
    """The reason of the first condition that does not hold, or why it cannot be told; "" if all hold."""
    try:
        return next((reason for reason, passes in filters if not passes(record)), "")
    except BadRecord as error:
        return str(error)


class Judge(beam.DoFn):
    """(id, record) -> (id, {"reason": ...}) of those that are turned down."""

    def __init__(self, filters: Sequence[Mapping[str, Any]], names: Sequence[str]):
        self._given = list(zip(filters, names, strict=True))

    def setup(self) -> None:
        """Makes the filters."""
        self._filters = [conditions(given, name) for given, name in self._given]

    def process(self, item: tuple[int, dict[str, Any]]) -> Iterator[Any]:
        """Judges a record."""
        ident, record = item
        reason = first_failing(record, self._filters[ident >> SOURCE_BITS])
        if reason:
            yield ident, {"reason": reason}


def build(pipeline: Any, job: Job, filters: Sequence[str]) -> None:
    """Adds the job to a pipeline.

    Raises:
      UserError: a condition that means nothing, or none at all.
    """
    given = {name: with_filters(entry, filters) for name, entry in job.entries.items()}
    for name, filter_ in given.items():
        if not filter_:
            raise UserError(f"No condition is given for {name!r}; name some with --filter.")
        conditions(filter_, name)
    found = read_all_records(pipeline, job)
    judge = Judge(list(given.values()), list(given))
    removed = (
        (found.left_out, found.records | "Filter" >> beam.ParDo(judge))
        | "All left out" >> beam.Flatten()
    )  # fmt: skip
    write_removed(removed, job, {"job": "filter", "filters": given})
