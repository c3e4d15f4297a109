"""Work on many pieces of a data set in several processes, its results in order and few of them in memory."""

import collections
import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clipjax.errors import UserError

_work: Callable[[Any], Any]  # of a worker


def each(work: Callable[[Any], Any], pieces: Iterable[Any], workers: int) -> Iterator[Any]:
    """`map(work, pieces)`, lazily.

    Args:
      work: may be pickled; every process gets it once.
      pieces: may be pickled.
      workers: processes; 1 works in this one.

    Raises:
      UserError: fewer workers than 1, or one that has died (its memory ran out).
    """
    check_workers(workers)
    if workers == 1:
        yield from map(work, pieces)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(work,)
    )
    try:
        waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        for piece in pieces:
            waiting.append(pool.submit(_do, piece))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except concurrent.futures.BrokenExecutor as error:
        raise UserError(
            "A worker process has died, perhaps for want of memory; try again with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def check_workers(workers: int) -> None:
    """Refuses numbers of processes that mean nothing."""
    if workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}.")


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    # A worker must not outlive a command that was killed.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _do(piece: Any) -> Any:
    return _work(piece)
