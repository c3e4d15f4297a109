"""Batches for this host, read ahead in threads or processes by Grain."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from clipjax.data.stream import Stream
from clipjax.errors import UserError


class HostView:
    """This host's samples of the batches from sample `start` to `stop`, in order; a Grain data source.

    Batch k is samples [k B, (k + 1) B) of the stream; host h of H reads the h-th of H equal parts of it. So the set and
    the order of global batches do not depend on H.
    """

    def __init__(
        self, stream: Stream, batch_size: int, start: int, stop: int, host: int, hosts: int
    ):
        if batch_size % hosts:
            raise UserError(
                f"A batch of {batch_size} does not divide over {hosts} hosts; choose another batch_size."
            )
        self._stream, self._batch, self._start = stream, batch_size, start
        self._part, self._first = batch_size // hosts, host * (batch_size // hosts)
        self._length = max(0, stop - start) // batch_size * self._part

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, place = divmod(index, self._part)
        return self._stream[self._start + batch * self._batch + self._first + place]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Unpickled in a worker, which must not outlive a run that was killed.
        parent = multiprocessing.parent_process()
        if parent is not None:
            threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def batches(
    stream: Stream,
    batch_size: int,
    start: int,
    stop: int,
    *,
    threads: int = 2,
    workers: int = 0,
    prefetch: int = 2,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This host's part of every batch of samples [start, stop), as numpy arrays.

    The only state is `start`, the samples seen: the iterator for samples s onwards gives what one from 0 gives after s.

    Args:
      stream: the samples.
      batch_size: samples of a global batch.
      start: first sample.
      stop: where to end; whole batches only.
      threads: decode in so many threads, of each process.
      workers: decode in so many processes instead of this one.
      prefetch: batches to read ahead.
      host: which of the equal parts of each batch to read.
      hosts: how many parts there are.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags; we have none
    grain.config.update("py_traceback_filtering", "off")  # it would lengthen a user's message
    view = HostView(stream, batch_size, start, stop, host, hosts)
    if not len(view):
        return iter(())
    part = batch_size // hosts
    source = grain.MapDataset.source(view)
    if not workers:
        options = grain.ReadOptions(
            num_threads=max(1, threads), prefetch_buffer_size=max(threads, part * prefetch)
        )
        return iter(source.to_iter_dataset(options).batch(part, drop_remainder=True))
    # Workers take turns, element by element, so an element must be a whole batch to keep the order of samples.
    options = grain.ReadOptions(num_threads=max(1, threads), prefetch_buffer_size=max(1, threads))
    processes = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=max(1, prefetch)
    )
    dataset = source.batch(part, drop_remainder=True).to_iter_dataset(options)
    return iter(dataset.mp_prefetch(processes))
