"""What the processes of a job must have in common: their config, their share of the data, their counters.

For one process everything here is immediate.
"""

import collections
import hashlib
import signal
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipjax.errors import SharedError, UserError
from clipjax.job.distributed import is_primary
from clipjax.mesh import batch_sharding, replicated


def gather(mine: np.ndarray) -> np.ndarray:
    """The arrays of all processes, [P, ...], bit for bit; they must have one shape and dtype (at least one axis).

    It waits for all of them, so it is not for every step.
    """
    mine = np.ascontiguousarray(mine)
    if jax.process_count() == 1:
        return mine[None]
    # As bytes, because JAX would cut 64-bit numbers to 32 bits.
    return np.asarray(multihost_utils.process_allgather(mine.view(np.uint8))).view(mine.dtype)


def check_same(what: str, parts: Mapping[str, str]) -> None:
    """Refuses to go on with processes that were given different things.

    Args:
      what: for the message.
      parts: by name; the names are the same everywhere.

    Raises:
      SharedError: names the processes and the parts.
    """
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in parts.values()]
    all_PxK = gather(np.array([np.frombuffer(d, np.int64)[0] for d in digests]))
    differs_PxK = all_PxK != all_PxK[0]
    if differs_PxK.any():
        who = ", ".join(str(p) for p in np.flatnonzero(differs_PxK.any(axis=1)))
        where = ", ".join(np.array(list(parts))[differs_PxK.any(axis=0)])
        raise SharedError(
            f"Process {who} has another {what} than process 0, in {where}; give all processes of a job the same."
        )


def from_primary(number: int) -> int:
    """The number that process 0 has."""
    return int(gather(np.array([number], np.int64))[0, 0])


def on_primary(action: Callable[[], None]) -> None:
    """Does something in process 0 only; the others wait for it, and all fail if it fails there.

    Raises:
      SharedError: what process 0 raised.
    """
    error = None
    if is_primary():
        try:
            action()
        except UserError as found:
            error = found
    if gather(np.array([error is not None]))[0, 0]:
        raise SharedError(str(error)) from error


class Share(NamedTuple):
    """Which part of every batch this process reads: the `part`-th of `parts` equal ones.

    Processes that hold shards of the same rows (of parameters split over processes) read the same part; `counts` is
    True in one of them.
    """

    part: int
    parts: int
    counts: bool


def batch_share(mesh: Mesh, batch_size: int) -> Share:
    """The rows of a batch that the devices of this process hold.

    Raises:
      UserError: processes hold some rows in common, but not all.
    """
    rows = collections.defaultdict(set)
    for device, (index,) in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        rows[device.process_index].add(index.indices(batch_size)[0])
    parts = sorted({tuple(sorted(starts)) for starts in rows.values()})
    if len(set().union(*parts)) != sum(map(len, parts)) or len({len(p) for p in parts}) > 1:
        raise UserError(
            f"config.mesh spreads the batch unevenly over {len(rows)} processes; let tensor * expert divide the "
            f"{len(mesh.local_devices)} devices of a process, or be a multiple of them."
        )
    me = jax.process_index()
    mine = tuple(sorted(rows[me]))
    owner = min(process for process, starts in rows.items() if tuple(sorted(starts)) == mine)
    return Share(parts.index(mine), len(parts), owner == me)


class Tally:
    """What happens in any process and all must know: what the data counts, and a signal to stop.

    The numbers of a step are added up on the devices beside it and fetched with its metrics, so that no process ever
    waits for another one because of them, and all learn them at the same step. That is a program of its own with one
    all-reduce of some dozen numbers a step; for one process it is plain addition.

    Attributes:
      counters: by name, of all processes together and the steps received so far; in the order of a batch's `counts`.
      signum: the signal that has asked one of them to stop; 0 for none.
    """

    def __init__(self, mesh: Mesh, share: Share, counters: Mapping[str, int]):
        self.counters, self.signum = dict(counters), 0
        self._share, self._alone = share, jax.process_count() == 1
        self._local = len(mesh.local_devices)
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._add = jax.jit(lambda rows_DxN: rows_DxN.sum(axis=0), out_shardings=replicated(mesh))

    def send(self, batch: Mapping[str, np.ndarray], signum: int) -> np.ndarray | jax.Array:
        """Starts to add up one step's numbers."""
        found = (batch["counts"].sum(axis=0) * self._share.counts).tolist()
        asked = [signum == signal.SIGTERM, signum == signal.SIGINT]
        numbers_N = np.array([*found, *asked], np.int32)
        if self._alone:
            self.signum = signum
            return numbers_N
        rows_LxN = np.zeros((self._local, len(numbers_N)), np.int32)
        rows_LxN[0] = numbers_N
        return self._add(jax.make_array_from_process_local_data(self._rows, rows_LxN))

    def receive(self, sent: np.ndarray | jax.Array) -> None:
        """Takes in what `send` gave for a step."""
        *found, terminated, interrupted = np.asarray(sent).tolist()
        for name, count in zip(self.counters, found, strict=True):
            self.counters[name] += count
        if terminated or interrupted:
            self.signum = signal.SIGTERM if terminated else signal.SIGINT
