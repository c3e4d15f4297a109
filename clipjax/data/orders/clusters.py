"""Batches of one group, or of few: the kind `clusters` of config.data.order."""

import numpy as np

from clipjax.data.orders.cycles import Cycles, permutation
from clipjax.data.orders.groups import Groups, split_id
from clipjax.data.orders.records import Records, check_unmixed
from clipjax.errors import UserError


class Clusters:
    """Every batch is of one group of similar records, which makes its negatives hard.

    A group comes as often as it has batches: each of its records once before any comes again, but for what is left
    over, less than a batch. The batches of all groups are shuffled, anew every epoch.

    Args:
      records: of all sources, without weights and windows.
      groups: in a batch, each with an equal share that stands side by side; must divide the batch size.
      leave_out_small: whether groups with fewer records than that share are left out; without it they are refused.
      column, files, array: where the group of a record is; see `Groups`.

    Raises:
      UserError: a setting that means nothing, or groups that are too small.
    """

    def __init__(
        self,
        records: Records,
        *,
        groups: int = 1,
        leave_out_small: bool = False,
        column: str | None = None,
        files: object = None,
        array: str | None = None,
    ):
        check_unmixed(records, "clusters")
        if groups < 1 or records.batch_size % groups:
            raise UserError(
                f"config.data.order.groups must divide the batch size {records.batch_size}, not be {groups}."
            )
        members = Groups(records, "clusters", column, files, array).members
        self._share, self._batch = records.batch_size // groups, records.batch_size
        small = [group for group in members if len(group) < self._share]
        if small and not leave_out_small:
            raise UserError(
                f"{len(small)} of {len(members)} groups of config.data.order have fewer records than the {self._share} "
                f"that a batch takes of one (the smallest {min(map(len, small))}); set "
                "config.data.order.leave_out_small=True, raise config.data.order.groups, or take smaller batches."
            )
        members = [group for group in members if len(group) >= self._share]
        # Which group each share of an epoch is of, and the how-manieth of the group it is.
        counts = [len(group) // self._share for group in members]
        self._counts_G = np.array(counts, np.int64)
        self._group_P = np.repeat(np.arange(len(members)), counts)
        self._draw_P = np.concatenate([np.arange(n) for n in counts]) if counts else np.array([])
        self._batches = len(self._group_P) // groups
        if not self._batches:
            raise UserError(
                f"The groups of config.data.order make no batch of {records.batch_size}; take smaller batches."
            )
        self._groups, self._seed = groups, records.seed
        self._cycles = Cycles(members, self._share, records.seed)

    def draw(self, place: int, number: int) -> tuple[int, int]:
        """(source, record); replacements are of the same group."""
        batch, rest = divmod(place, self._batch)
        epoch, at = divmod(batch, self._batches)
        slot, within = divmod(rest, self._share)
        order = permutation(len(self._group_P), self._seed, 1, epoch)
        share = int(order[at * self._groups + slot])
        group = int(self._group_P[share])
        draw = epoch * int(self._counts_G[group]) + int(self._draw_P[share])
        return split_id(self._cycles.record(group, draw, within, number))
