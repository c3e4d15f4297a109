"""How a data set is cut into new shards: which record goes where, how many there are, and which are there already."""

import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.data.bad import BadRecord
from clipjax.data.commands.named import open_source
from clipjax.data.filters import make_filter
from clipjax.data.orders.shuffle import Shuffle
from clipjax.data.sources import array_record
from clipjax.errors import UserError
from clipjax.log.writers import replace_file

SUMMARY, PROGRESS = "summary.json", "progress.jsonl"
FILTERED = "turned down by the filter"
SAMPLE, DRAWS = 256, 16_384  # records that sizes are estimated from; draws, where few pass
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Records:
    """The records of a source, `places` of them in their new order, as a target holds them.

    Args:
      name, entry: of the source; opened where it is needed, so that this may be pickled.
      target: of `targets.make_target`.
      shuffle: seed of the new order; None: the source's.
      drop: fields to leave out.
      limit: only so many places; None: all.
    """

    def __init__(
        self,
        name: str,
        entry: Mapping[str, Any],
        target: Any,
        shuffle: int | None = None,
        drop: Sequence[str] = (),
        limit: int | None = None,
    ):
        self._name, self._entry, self.target = name, dict(entry), target
        self._shuffle, self.drop, self._limit = shuffle, tuple(drop), limit
        self.__setstate__(self.__dict__)

    def __len__(self) -> int:
        length = len(self._source)
        return length if self._limit is None else min(length, self._limit)

    def read(self, place: int) -> tuple[dict[str, Any] | None, str, list[str]]:
        """(fields, "", names of dropped ones), or (None, why it is left out, []).

        Raises:
          UserError: the target cannot hold it, or the source's files cannot be read at all.
        """
        index = place if self._order is None else self._order.draw(place, 0)[1]
        try:
            record = self._source[index]
            if self._filter is not None and not self._filter(record):
                return None, FILTERED, []
            return self.fit(record)
        except BadRecord as error:
            return None, str(error), []
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"Record {index} of {self._name!r} cannot be read ({type(error).__name__}: {error}); run again to go "
                "on here, or look at it with: clipjax data verify."
            ) from error

    def fit(self, record: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str, list[str]]:
        """What is written of a raw record, as `read` gives it.

        Raises:
          UserError: the target cannot hold it.
        """
        dropped = [name for name in self.drop if name in record]
        kept = {k: v for k, v in record.items() if k not in dropped}
        try:
            return self.target.fit(kept), "", dropped
        except BadRecord as error:
            return None, str(error), []

    def sample(self) -> tuple[list[dict[str, Any]], int]:
        """About `SAMPLE` records that are written, evenly from everywhere, and how many were looked at.

        Raises:
          UserError: none of those looked at can be written.
        """
        order, length = Shuffle([len(self)], [1.0], 0), len(self)
        found, reasons, draw = [], {}, 0
        while draw < min(length, DRAWS) and len(found) < SAMPLE:
            fields, reason, _ = self.read(order.draw(draw, 0)[1])
            draw += 1
            if fields is None:
                reasons[reason] = reasons.get(reason, 0) + 1
            else:
                found.append(fields)
        if not found:
            why = ", ".join(f"{n:,}: {reason}" for reason, n in reasons.items())
            raise UserError(
                f"None of {draw:,} records of {self._name!r}, drawn from everywhere, can be written ({why})."
            )
        return found, draw

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_source", "_order", "_filter")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._source = open_source(self._entry, self._name)
        self._filter = make_filter(self._entry.get("filter"), self._name)
        seed = self._shuffle
        self._order = None if seed is None else Shuffle([len(self._source)], [1.0], seed)


def as_json(value: Any) -> Any:
    """What JSON makes of a plan. A set becomes a sorted list: its own order differs from process to process."""

    def plain(found: Any) -> Any:
        return sorted(found, key=repr) if isinstance(found, set | frozenset) else repr(found)

    return json.loads(json.dumps(value, default=plain))


def fingerprint(records: Sequence[Mapping[str, Any]]) -> str:
    """A hash of some records, by which another data set of the same name is noticed."""
    found = hashlib.sha256()
    for fields in records:
        found.update(hashlib.sha256(array_record.encode(fields)).digest())
    return found.hexdigest()


def parse_size(text: str) -> int:
    """Bytes of `256MB`, `1GiB`, `500000`.

    Raises:
      UserError: no such thing.
    """
    match = re.fullmatch(r"\s*([\d_.]+)\s*([KMGT]?I?)B?\s*", text.upper())
    try:
        size = int(float(match[1]) * _UNITS[match[2]])
    except (TypeError, KeyError, ValueError):
        size = 0
    if size < 1:
        raise UserError(f"--shard-size must be such as 256MB or 1GiB, not {text!r}.")
    return size


def count_shards(records: int, size: float, shard_size: int, shards: int | None, hosts: int) -> int:
    """How many shards there shall be.

    Args:
      records: places to be shared out.
      size: bytes of all of them, about.
      shard_size: bytes of a shard, where their number is not given.
      shards: their number, or None.
      hosts: processes that will read them; the number is a multiple of it.

    Raises:
      UserError: numbers that mean nothing, or more shards than records.
    """
    if hosts < 1 or (shards is not None and shards < 1):
        raise UserError("--hosts and --shards must be at least 1.")
    if shards is None:
        wanted = max(1, round(size / shard_size))
        shards = min(math.ceil(wanted / hosts) * hosts, max(records // hosts, 1) * hosts)
    elif shards % hosts:
        below = shards // hosts * hosts
        near = f"{below} or {below + hosts}" if below else f"{hosts}"
        raise UserError(
            f"{shards} shards do not divide over {hosts} hosts; choose --shards={near}."
        )
    if shards > records:
        raise UserError(f"{records:,} records cannot fill {shards:,} shards; choose fewer.")
    return shards


class Folder:
    """The output directory: shards that are whole, `summary.json`, and while it is written `progress.jsonl`.

    Args:
      path: of the directory; may be missing or empty.
      plan: whatever decides the shards' bytes, as JSON has it; a directory of another plan is refused.
      notes: what else the summary tells.

    Raises:
      UserError: the directory belongs to something else, or another process writes it right now.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], notes: Mapping[str, Any]):
        self.path = path
        self._head = {"plan": as_json(plan), **notes}
        old = _read_summary(path)
        if old is not None and old["plan"] != self._head["plan"]:
            mine = self._head["plan"]
            other = sorted(k for k in mine | old["plan"] if mine.get(k) != old["plan"].get(k))
            raise UserError(
                f"{str(path)!r} holds shards of other data or arguments (different: {', '.join(other)}); choose "
                "another --output, or remove it."
            )
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_RDONLY)  # let go of when the process ends, however it does
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise UserError(f"Another process writes to {str(path)!r}; wait for it.") from error
        except OSError:
            pass  # a file system without locks
        lines = old.get("shards", []) if old else []
        if not lines and (path / PROGRESS).is_file():
            lines = [_parse(line) for line in (path / PROGRESS).read_bytes().splitlines()]
        self.done = {
            line["shard"]: line
            for line in lines
            if line is not None
            and all((path / f).is_file() for f in line["files"])
            and (path / line["files"][0]).stat().st_size == line["bytes"]
        }
        if len(self.done) < len(lines) or old is None or "shards" not in old:
            # A torn last line must not run into the next one.
            replace_file(path / SUMMARY, json.dumps(self._head, indent=1) + "\n")
            replace_file(path / PROGRESS, "".join(json.dumps(v) + "\n" for v in self.done.values()))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Writes the summary: the plan, `facts`, and every shard."""
        shards = [self.done[number] for number in sorted(self.done)]
        text = json.dumps(self._head | dict(facts) | {"shards": shards}, indent=1)
        replace_file(self.path / SUMMARY, text + "\n")
        (self.path / PROGRESS).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets others write."""
        os.close(self._lock)


def note_shard(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a whole shard to the progress, in one write, so that processes do not disturb each other."""
    file = os.open(path / PROGRESS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        return found if isinstance(found, dict) and found["files"] and "bytes" in found else None
    except (ValueError, KeyError):
        return None


def _read_summary(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    if path.is_dir() and all(p.name.startswith(".") for p in path.iterdir()):
        return None  # killed before it began
    try:
        found = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        found["plan"].keys()
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} is there already, and not a directory that clipjax data convert has begun; choose another "
            "--output."
        ) from error
