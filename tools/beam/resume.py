"""Jobs that go on where they were stopped: which shards of an output folder are whole, local or remote.

While a job is under way its folder holds `progress/plan.json` and a `progress/NNNNN.json` for every shard that is
whole, written after the shard by whatever worker made it. At the end they become `summary.json`. clipjax/data/shards.py
does the same for one machine, whose processes can add to one file.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import SUMMARY, join, write_file

from clipjax.data.sources.files import filesystem, is_remote, read_all, size_of
from clipjax.errors import UserError

PROGRESS, PLAN = "progress", "plan.json"


class Progress:
    """The output folder of a job.

    Attributes:
      output: the folder, an absolute path.
      done: number of a shard -> its line, of all that are whole.
      finished: whether all are, and the summary is there.

    Args:
      output: new, empty, or of a job with the same plan.
      plan: what decides the shards' bytes; `shards` is their number.

    Raises:
      UserError: the folder belongs to something else, or another process writes to it.
    """

    def __init__(self, output: str, plan: Mapping[str, Any]):
        self.output = output if is_remote(output) else os.path.abspath(output)
        self._lock = _hold(self.output)
        try:
            self._compare(json.loads(json.dumps(plan, default=repr)))
        except BaseException:
            self.close()
            raise

    def _compare(self, plan: dict[str, Any]) -> None:
        summary, begun = self._summary(), _json(join(self._progress, PLAN))
        old = summary["plan"] if summary else begun
        if old is not None and old != plan:
            other = sorted(k for k in plan | old if plan.get(k) != old.get(k))
            raise UserError(
                f"{self.output!r} holds shards of other data or arguments (different: {', '.join(other)}); choose "
                "another --output, or remove it."
            )
        lines = list(summary["shards"] if summary else ())
        if begun is not None:
            names = [n for n in _names(self._progress) if n.endswith(".json") and n != PLAN]
            lines += [_json(join(self._progress, n)) for n in names]
        self.done = {line["shard"]: line for line in lines if line and self._whole(line)}
        self.finished = summary is not None and len(self.done) == plan["shards"]
        if self.finished:
            _remove(self._progress)  # a kill between the summary and this
        else:
            _make(self._progress)
            write_file(join(self._progress, PLAN), json.dumps(plan, indent=1).encode())

    @property
    def _progress(self) -> str:
        return join(self.output, PROGRESS)

    def _summary(self) -> dict[str, Any] | None:
        """The summary of a job that has ended; refuses folders of something else, and clears what a kill has left."""
        names = _names(self.output)
        found = _json(join(self.output, SUMMARY)) if SUMMARY in names else None
        if found is not None and not {"plan", "shards"} <= set(found):
            found = None
        if found is None and PROGRESS not in names and any(n[0] != "." for n in names):
            raise UserError(
                f"{self.output!r} holds something already; name another --output or remove it."
            )
        if not is_remote(self.output):
            for path in (*Path(self.output).glob(".*part*"), *Path(self._progress).glob(".*part")):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return found

    def _whole(self, line: Mapping[str, Any]) -> bool:
        try:
            sizes = [size_of(join(self.output, file)) for file in line["files"]]
        except FileNotFoundError:
            return False
        return sizes[0] == line["bytes"]

    def close(self) -> None:
        """Lets others write."""
        if self._lock is not None:
            os.close(self._lock)


def note_shard(output: str, line: Mapping[str, Any]) -> None:
    """Says that a shard is whole."""
    write_file(join(join(output, PROGRESS), f"{line['shard']:05d}.json"), json.dumps(line).encode())


def finish(output: str, summary: Mapping[str, Any]) -> None:
    """Writes the summary, and removes the progress."""
    write_file(join(output, SUMMARY), (json.dumps(summary, indent=1) + "\n").encode())
    _remove(join(output, PROGRESS))


def _hold(folder: str) -> int | None:
    """Makes the folder; keeps other processes of this machine out until this one ends, however it does."""
    _make(folder)
    if is_remote(folder):
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(f"Another process writes to {folder!r}; wait for it.") from error
    except OSError:
        pass  # a file system without locks
    return lock


def _make(folder: str) -> None:
    try:
        system, inner = filesystem(folder)
        system.makedirs(inner, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder!r} cannot be made: {error}.") from error


def _remove(folder: str) -> None:
    system, inner = filesystem(folder)
    if system.exists(inner):
        system.rm(inner, recursive=True)


def _names(folder: str) -> Sequence[str]:
    system, inner = filesystem(folder)
    system.invalidate_cache()
    if not system.exists(inner):
        return []
    return sorted(os.path.basename(path.rstrip("/")) for path in system.ls(inner, detail=False))


def _json(path: str) -> dict[str, Any] | None:
    """What a file of JSON holds; None if there is none, or no object in it."""
    try:
        found = json.loads(read_all(path))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
