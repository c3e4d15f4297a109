"""Neighbouring places that belong together: the kind `pairs` of config.data.order."""

from typing import Any

import numpy as np

from clipjax.data.features.stored import Stored
from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.orders.groups import Groups, all_ids, split_id
from clipjax.data.orders.records import Records, hashed
from clipjax.data.orders.shuffle import Shuffle
from clipjax.errors import UserError


class Pairs:
    """The records at places 2i and 2i + 1 are a pair.

    The first is drawn as `shuffle` draws, by weights and windows, of the records that have a partner; the second is one
    of its partners, each as likely. Where one of a pair cannot be used, another record takes its place, and the two are
    no pair: a place does not know what became of its neighbour.

    Args:
      records: of all sources; the batch size must be even.
      column, files, array: a label of each record, see `Groups`; all others of the same label are its partners.
      partners: files of the partners themselves, sample ids [N] or [N,p] padded with -1; see
        clipjax/data/features/stored.py. Instead of labels.

    Raises:
      UserError: a setting that means nothing, or no record with a partner.
    """

    def __init__(
        self,
        records: Records,
        *,
        column: str | None = None,
        files: Any = None,
        array: str | None = None,
        partners: Any = None,
    ):
        if records.batch_size % 2:
            raise UserError(
                f"config.data.order.kind = 'pairs' needs an even batch_size, not {records.batch_size}."
            )
        self._seed = records.seed
        self._members: list[np.ndarray] = []
        if partners is not None:
            if column is not None or files is not None:
                raise UserError(
                    "config.data.order has partners and labels; leave out column and files, or partners."
                )
            paired, self._partners_Nxp = _stored_partners(records, partners, array)
            self._ids_N, self._group_N = paired, np.zeros(0, np.int64)
        else:
            groups = Groups(records, "pairs", column, files, array)
            self._members = [group for group in groups.members if len(group) > 1]
            ids = np.concatenate([*self._members, np.zeros(0, np.int64)])
            numbers = np.repeat(np.arange(len(self._members)), [len(m) for m in self._members])
            order = np.argsort(ids)
            self._ids_N, self._group_N = ids[order], numbers[order]
        if not len(self._ids_N):
            raise UserError("config.data.order: no record has a partner, so there are no pairs.")
        # The records of each source that have a partner: their positions are what is shuffled.
        source_N = self._ids_N >> SOURCE_BITS
        sources = [s for s in range(len(records.sources)) if (source_N == s).any()]
        self._of_source = [self._ids_N[source_N == s] for s in sources]
        self._base = Shuffle(
            [len(ids) for ids in self._of_source],
            [records.weights[s] for s in sources],
            records.seed,
            [records.windows[s] for s in sources],
        )

    def draw(self, place: int, number: int) -> tuple[int, int]:
        """(source, record); the replacement of a first is any other first, that of a second another partner."""
        pair, second = divmod(place, 2)
        source, position = self._base.draw(pair, 0 if second else number)
        sample_id = int(self._of_source[source][position])
        return split_id(self._partner(sample_id, pair, number) if second else sample_id)

    def _partner(self, sample_id: int, pair: int, number: int) -> int:
        """One of the partners; where there is only one, which cannot be used, any record that has a partner."""
        at = int(np.searchsorted(self._ids_N, sample_id))
        if self._members:
            group = self._members[self._group_N[at]]
            others = group[group != sample_id]
        else:
            row = self._partners_Nxp[at]
            others = row[row >= 0]
        if number and len(others) == 1:
            others = self._ids_N
        return int(others[hashed(8, self._seed, 9, pair, number) * len(others) >> 64])


def _stored_partners(
    records: Records, files: Any, array: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [N] of the records that have partners, their partners' ids [N,p])."""
    stored = Stored(files, array, records.names, "config.data.order.partners")
    stored.open()
    if stored.dtype.kind not in "iu" or len(stored.shape) > 1:
        raise UserError(
            "config.data.order.partners must hold sample ids [N] or [N,p], not "
            f"{stored.dtype.name} {['N', *stored.shape]}."
        )
    ids_N = all_ids(records)
    partners, there_N = stored.get_all(ids_N)
    partners_Nxp = partners.reshape(len(ids_N), -1).astype(np.int64)
    there_N &= (partners_Nxp >= 0).any(axis=1)
    found = partners_Nxp[there_N]
    unknown = found[(found >= 0) & ~np.isin(found, ids_N)]
    if len(unknown):
        raise UserError(
            f"config.data.order.partners names the sample_id {unknown[0]}, which the sources do not have."
        )
    return ids_N[there_N], found
