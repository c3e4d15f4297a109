"""Batches of some labels with some records each: the kind `classes` of config.data.order."""

from typing import Any

from clipjax.data.orders.cycles import Cycles, permutation
from clipjax.data.orders.groups import Groups, split_id
from clipjax.data.orders.records import Records, check_unmixed
from clipjax.errors import UserError


class Classes:
    """`per_label` records of each of batch_size / per_label different labels in every batch.

    Labels are as likely as one another, whatever the number of their records: each comes once before any comes again
    (but for those that are left over, fewer than a batch has). So do the records of a label. A label with fewer records
    than `per_label` repeats some within the batch. The records of a label stand side by side.

    Args:
      records: of all sources, without weights and windows.
      per_label: records m of a label in a batch; must divide the batch size.
      column, files, array: where the labels are; see `Groups`.

    Raises:
      UserError: a setting that means nothing, or fewer labels than a batch has.
    """

    def __init__(
        self,
        records: Records,
        *,
        per_label: int,
        column: str | None = None,
        files: Any = None,
        array: str | None = None,
    ):
        check_unmixed(records, "classes")
        if per_label < 1 or records.batch_size % per_label:
            raise UserError(
                f"config.data.order.per_label must divide the batch size {records.batch_size}, not be {per_label}."
            )
        members = Groups(records, "classes", column, files, array).members
        self._per_label, self._batch = per_label, records.batch_size
        self._labels, self._in_batch = len(members), records.batch_size // per_label
        self._batches = self._labels // self._in_batch  # of an epoch
        if not self._batches:
            raise UserError(
                f"A batch of {records.batch_size} with config.data.order.per_label = {per_label} has {self._in_batch} "
                f"labels, but the data has only {self._labels}; raise per_label, or take smaller batches."
            )
        self._seed, self._cycles = records.seed, Cycles(members, per_label, records.seed)

    def draw(self, place: int, number: int) -> tuple[int, int]:
        """(source, record); replacements have the same label."""
        batch, rest = divmod(place, self._batch)
        epoch, at = divmod(batch, self._batches)
        slot, within = divmod(rest, self._per_label)
        labels = permutation(self._labels, self._seed, 1, epoch)
        label = int(labels[at * self._in_batch + slot])
        return split_id(self._cycles.record(label, epoch, within, number))
