"""Files of a data set, local or remote: which there are, and any part of one."""

import collections
import glob
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clipjax.errors import TryAgainError, UserError

OPEN_FILES = 64  # of each process
CHUNKS = 32  # the same
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds


def expand(patterns: str | Sequence[str], what: str) -> list[str]:
    """Paths that patterns mean, each pattern's sorted, in the patterns' order.

    Args:
      patterns: paths with `*`, `?`, `[]` and ranges `{0000..0099}` or choices `{a,b}`; `gs://`, `s3://` and whatever
        else fsspec knows.
      what: for the message.

    Raises:
      UserError: a pattern without any file, or a file twice.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found: list[str] = []
    for pattern in (p for given in patterns for p in braces(given)):
        paths = sorted(_glob(pattern))
        if not paths:
            raise UserError(f"There is no {what} {pattern!r}.")
        found += paths
    twice = [p for p, n in collections.Counter(found).items() if n > 1]
    if twice:
        raise UserError(f"The {what} {twice[0]!r} is named more than once.")
    return found


def braces(pattern: str) -> Iterator[str]:
    """`a{0..2}.tar` -> a0.tar, a1.tar, a2.tar; `{x,y}` -> x, y; leading zeros stay."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    first, last, choices = match.groups()
    if choices is None:
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        parts = choices.split(",")
    for part in parts:
        yield from braces(pattern[: match.start()] + part + pattern[match.end() :])


def is_remote(path: str) -> bool:
    """Whether a path names a file system of fsspec's, such as gs://."""
    return "://" in path


def filesystem(path: str) -> tuple[Any, str]:
    """(fsspec's file system, the path on it).

    Raises:
      UserError: a protocol that needs a package that is not there.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path!r} cannot be read: {error}.") from error


def size_of(path: str) -> int:
    """Bytes of a file."""
    if is_remote(path):
        system, inner = filesystem(path)
        return int(system.size(inner))
    return os.stat(path).st_size


def read_all(path: str) -> bytes:
    """The whole file."""
    if is_remote(path):
        system, inner = filesystem(path)
        return system.cat_file(inner)
    with open(path, "rb") as file:
        return file.read()


class Reader:
    """Reads parts of many files, from any thread, with few of them open. May be pickled; then nothing is open.

    Args:
      chunk: bytes; remote files are read in pieces of so many, of which the last `CHUNKS` are kept, so that neighbours
        share a request. 0: each part is a request.
    """

    def __init__(self, chunk: int = 0) -> None:
        self.__setstate__({"chunk": chunk})

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a file, fewer at its end.

        Raises:
          UserError: there is no such file.
          TryAgainError: a remote file cannot be read, five times.
        """
        if is_remote(path):
            if not self._chunk:
                return request(path, offset, size)
            first, last = offset // self._chunk, (offset + size - 1) // self._chunk
            found = b"".join(self._piece(path, n) for n in range(first, last + 1))
            return found[offset - first * self._chunk :][:size]
        with self._lock:
            file = self._open.pop(path, None)
            self._open[path] = file = os.open(path, os.O_RDONLY) if file is None else file
            if len(self._open) > OPEN_FILES:
                # A thread that still reads the oldest would read another file's bytes.
                for old in [p for p in self._open if p not in self._busy][:1]:
                    os.close(self._open.pop(old))
            self._busy[path] += 1
        try:
            return os.pread(file, size, offset)
        finally:
            with self._lock:
                self._busy[path] -= 1
                self._busy += collections.Counter()  # forgets zeros

    def _piece(self, path: str, number: int) -> bytes:
        """One piece of a remote file; two threads do not ask for the same at once."""
        with self._lock:
            piece = self._pieces.setdefault((path, number), _Piece())
            self._pieces.move_to_end((path, number))
            while len(self._pieces) > CHUNKS:
                self._pieces.popitem(last=False)
        with piece.lock:
            if piece.data is None:
                piece.data = request(path, number * self._chunk, self._chunk)
            return piece.data

    def __getstate__(self) -> dict[str, Any]:
        return {"chunk": self._chunk}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._chunk: int = state["chunk"]
        self._pieces: collections.OrderedDict[tuple[str, int], _Piece] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._busy: collections.Counter[str] = collections.Counter()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for file in self._open.values():
            close(file)


class _Piece:
    """A place for a piece of a file that is being read."""

    def __init__(self) -> None:
        self.lock, self.data = threading.Lock(), None


def request(path: str, offset: int, size: int) -> bytes:
    """Part of a remote file; see `patiently`."""
    system, inner = filesystem(path)
    return patiently(path, lambda: system.cat_file(inner, start=offset, end=offset + size))


def patiently(path: str, read: Callable[[], Any]) -> Any:
    """Reads of a remote file. What fails is tried again after 1, 2, 4 and 8 seconds.

    A network that fails must not look like a broken record: the run would go on with other samples.

    Raises:
      UserError: there is no such file, or it may not be read.
      TryAgainError: it failed five times.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"{path!r} cannot be read: {error}.") from error
        except Exception as error:  # of a dozen libraries
            if pause is None:
                raise TryAgainError(f"{path!r} cannot be read: {error}.") from error
            time.sleep(pause)
    raise AssertionError


def _glob(pattern: str) -> list[str]:
    if not any(c in pattern for c in "*?["):
        return [pattern] if is_remote(pattern) or os.path.isfile(pattern) else []
    if not is_remote(pattern):
        return [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
    system, inner = filesystem(pattern)
    return [system.unstrip_protocol(p) for p in system.glob(inner)]
