"""Jobs that go on where they were stopped: which shards of an output folder are whole, local or remote.

While a job is under way its folder holds `progress/plan.json` and a `progress/NNNNN.json` for every shard that is
whole, written after the shard by whatever worker made it. At the end they become `summary.json`.
clipjax/data/commands/shards.py does the same for one machine, whose processes can add to one file.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.commands.shards import as_json
from clipjax.data.sources.files import filesystem, is_remote, patiently, read_all, size_of
from clipjax.errors import UserError
from tools.beam.common import SUMMARY, join, write_file, write_summary

PROGRESS, PLAN = "progress", "plan.json"
LINE = r"\d{5,}\.json"  # of a shard that is whole
# What a kill leaves: of `write_file`, and of a shard that was being written.
PART = r"\.[0-9a-f]{32}\.part|\.part-[0-9a-f]{32}\w*"


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
            self._compare(as_json(plan))
        except BaseException:
            self.close()
            raise

    def _compare(self, plan: dict[str, Any]) -> None:
        names, inside = _names(self.output), _names(self._progress)
        summary = _json(join(self.output, SUMMARY)) if SUMMARY in names else None
        if summary is not None and not {"plan", "shards"} <= set(summary):
            summary = None
        begun = _json(join(self._progress, PLAN)) if PLAN in inside else None
        old = summary["plan"] if summary else begun
        if old is None and any(n[0] != "." and n != PROGRESS for n in [*names, *inside]):
            raise UserError(
                f"{self.output!r} holds something already; name another --output or remove it."
            )
        if old is not None and old != plan:
            other = sorted(k for k in plan | old if plan.get(k) != old.get(k))
            raise UserError(
                f"{self.output!r} holds shards of other data or arguments (different: {', '.join(other)}); choose "
                "another --output, or remove it."
            )
        self._tidy(names, inside)
        lines = list(summary["shards"] if summary else ())
        if begun is not None:
            lines += [_json(join(self._progress, n)) for n in inside if re.fullmatch(LINE, n)]
        self.done = {line["shard"]: line for line in lines if line and self._whole(line)}
        self.finished = summary is not None and len(self.done) == plan["shards"]
        if self.finished:
            _clear(self._progress)  # a kill between the summary and this
        else:
            _make(self._progress)
            write_file(join(self._progress, PLAN), json.dumps(plan, indent=1).encode())

    @property
    def _progress(self) -> str:
        return join(self.output, PROGRESS)

    def _tidy(self, names: Sequence[str], inside: Sequence[str]) -> None:
        """Removes the files that a kill has left half written; in a bucket there are none."""
        if is_remote(self.output):
            return
        paths = [join(self.output, n) for n in names] + [join(self._progress, n) for n in inside]
        for path in paths:
            if re.fullmatch(PART, os.path.basename(path)):
                # Workers that outlive their job may still finish it.
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

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
    write_summary(output, summary)
    _clear(join(output, PROGRESS))


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


def _clear(folder: str) -> None:
    """Removes the plan, the lines and what a kill has left, and the folder if nothing else is in it."""
    system, inner = filesystem(folder)
    ours = [n for n in _names(folder) if n == PLAN or re.fullmatch(f"{LINE}|{PART}", n)]
    # Something else may lie in it, and a bucket has no folders; whatever stays disturbs nobody.
    with contextlib.suppress(OSError):
        if ours:
            system.rm([join(inner, n) for n in ours])
        system.rmdir(inner)


def _names(folder: str) -> Sequence[str]:
    system, inner = filesystem(folder)
    system.invalidate_cache()
    if not system.exists(inner):
        return []
    return sorted(os.path.basename(path.rstrip("/")) for path in system.ls(inner, detail=False))


def _json(path: str) -> dict[str, Any] | None:
    """What a file of JSON holds; None if there is no object in it. UserError if it cannot be read."""
    try:
        found = json.loads(patiently(path, lambda: read_all(path)))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
