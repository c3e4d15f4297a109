"""`clipjax data convert`: a data set in another layout, cut into shards that suit the job that reads it."""

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipjax import __version__
from clipjax.data.commands.named import Named, parse_setting
from clipjax.data.commands.shards import (
    Folder,
    Records,
    count_shards,
    fingerprint,
    note_shard,
    parse_size,
)
from clipjax.data.commands.targets import make_target
from clipjax.data.sources.files import is_remote
from clipjax.data.workers import check_workers, each
from clipjax.errors import UserError

SHARD_SIZE = "256MB"


def convert(
    data: Named,
    output: str,
    to: str = "array_record",
    shard_size: str | None = None,
    shards: int | None = None,
    hosts: int = 1,
    filters: Sequence[str] = (),
    shuffle: int | None = None,
    drop: Sequence[str] = (),
    workers: int = 1,
    limit: int | None = None,
) -> int:
    """Writes shards, `summary.json` beside them, and says what was left out and why.

    The bytes of a shard depend on the source and on what decides them here, and not on workers or interruptions: a
    second run with the same arguments goes on after the shards that are there.

    Args:
      data: the source.
      output: a local directory: new, empty, or of a run with the same arguments.
      to: a key of `targets.TARGETS`.
      shard_size: such as "256MB", "1GiB"; None and no `shards`: `SHARD_SIZE`.
      shards: their number, instead.
      hosts: processes that will read; the number of shards is a multiple of it.
      filters: `NAME=VALUE` of `clipjax.data.filters.Filter`'s arguments, beside those of a config's source.
      shuffle: seed of a random order of the records; None: as they are.
      drop: fields to leave out.
      workers: processes.
      limit: only so many records (the first, or with `shuffle` any).

    Returns:
      0.

    Raises:
      UserError: arguments that mean nothing, a directory of something else, a field that the layout cannot hold.
    """
    name, entry = data.one("clipjax data convert")
    if is_remote(output):
        raise UserError(
            f"--output must be a local directory, not {output!r}; copy it when it is there."
        )
    if shard_size is not None and shards is not None:
        raise UserError("Give --shard-size or --shards, not both.")
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}.")
    if "image" in drop:
        raise UserError("The field 'image' cannot be dropped.")
    check_workers(workers)
    wanted = parse_size(shard_size or SHARD_SIZE)
    entry = entry | {"filter": _filter(entry, filters)}
    target = make_target(to)
    records = Records(name, entry, target, shuffle, drop, limit)
    sample, looked = records.sample()
    target.look(sample)
    size = sum(map(target.size, sample)) / looked * len(records)
    count = count_shards(len(records), size, wanted, shards, hosts)
    plan = {
        "source": {k: v for k, v in entry.items() if k not in ("weight", "captions", "window")},
        "records": len(records),
        "to": to,
        "shards": count,
        "shuffle": shuffle,
        "drop": sorted(drop),
        "sample": fingerprint(sample),
    }
    folder = Folder(Path(output), plan, {"clipjax": __version__, "name": name, "hosts": hosts})
    try:
        return _run(records, folder, count, size, hosts, workers, entry)
    finally:
        folder.close()


def _run(
    records: Records,
    folder: Folder,
    count: int,
    size: float,
    hosts: int,
    workers: int,
    entry: dict[str, Any],
) -> int:
    several = f", a multiple of {hosts} hosts" if hosts > 1 else ""
    print(
        f"{len(records):,} records, about {_bytes(size)}: {count:,} shard(s){several}, of about {_bytes(size / count)} "
        "each."
    )
    missing = [n for n in range(count) if n not in folder.done]
    if len(missing) < count:
        print(f"{count - len(missing):,} of {count:,} shards are there already.")
    work = Shards(records, folder.path, count)
    for number, line in enumerate(each(work, missing, workers), 1):
        folder.done[line["shard"]] = line
        if number % max(1, len(missing) // 20) == 0 or number == len(missing):
            print(f"{number:,} of {len(missing):,} shards written", flush=True)
    left_out: collections.Counter[str] = collections.Counter()
    dropped: collections.Counter[str] = collections.Counter()
    for line in folder.done.values():
        left_out.update(line["left_out"])
        dropped.update(line["dropped"])
    written = sum(line["records"] for line in folder.done.values())
    facts = {
        "written": written,
        "bytes": sum(line["bytes"] for line in folder.done.values()),
        "left_out": dict(left_out.most_common()),
        "dropped": dict(dropped.most_common()),
    }
    folder.finish(facts)
    print(f"{written:,} records written, {_bytes(facts['bytes'])}.")
    for reason, n in left_out.most_common():
        print(f"{n:,} left out: {reason}")
    for field in records.drop:
        print(f"{dropped[field]:,} records lost their field {field!r}")
    print(f"To read them: {_new_entry(records, folder.path, entry)!r}")
    return 0


class Shards:
    """Work for `workers.each`: writes one shard of `records`, and returns its line of the summary."""

    def __init__(self, records: Records, path: Path, count: int):
        self._records, self._path, self._count = records, path, count
        self._digits = max(5, len(str(count - 1)))

    def __call__(self, number: int) -> dict[str, Any]:
        """Shard `number` of `count`: equal parts of the places, in order.

        Raises:
          UserError: see `Records.read`.
        """
        target, length = self._records.target, len(self._records)
        path = self._path / f"{number:0{self._digits}d}{target.suffix}"
        left_out: collections.Counter[str] = collections.Counter()
        dropped: collections.Counter[str] = collections.Counter()

        def kept() -> Iterator[dict[str, Any]]:
            for place in range(
                number * length // self._count, (number + 1) * length // self._count
            ):
                fields, reason, gone = self._records.read(place)
                if fields is None:
                    left_out[reason] += 1
                    continue
                dropped.update(gone)
                yield fields

        try:
            written = target.write(kept(), path)
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written: {error}.") from error
        line = {
            "shard": number,
            "files": [p.name for p in target.files(path)],
            "records": written,
            "bytes": path.stat().st_size,
            "left_out": dict(left_out),
            "dropped": dict(dropped),
        }
        note_shard(self._path, line)
        return line


def _filter(entry: dict[str, Any], filters: Sequence[str]) -> dict[str, Any] | None:
    found = dict(entry.get("filter") or {})
    given = [parse_setting(text, "--filter") for text in filters]
    for name, value in given:
        if [n for n, _ in given].count(name) > 1:
            raise UserError(
                f"--filter {name} is given more than once; write all of it into one, such as ranges={{...}}."
            )
        found[name] = value
    return found or None


def _new_entry(records: Records, path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """What a config says to read the shards: the filter has been used, the rest of the entry stays."""
    target = records.target
    kept = {k: entry[k] for k in ("box_format", "captions", "weight") if entry.get(k) is not None}
    return {"kind": target.kind, target.setting: str(path / f"*{target.suffix}")} | kept


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
