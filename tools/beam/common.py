"""What the jobs share: sources read in ranges, lists of records that are left out, and a summary."""

import collections
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from clipjax import __version__
from clipjax.data.bad import BadRecord
from clipjax.data.commands.named import Named, open_source, parse_setting
from clipjax.data.commands.shards import as_json
from clipjax.data.filters import Filter, make_filter
from clipjax.data.sources.files import filesystem, is_remote, read_all
from clipjax.errors import UserError
from clipjax.registry import nearest

SUMMARY = "summary.json"
SOURCE_BITS = (
    40  # an id is (number of the source << 40) + index of the record, as `sample_id` in a batch
)
RANGE = 1024  # records of a piece of work
LINES = 1 << 20  # records that one file of removed ones is about
COUNTS = "clipjax"  # namespace of Beam's counters


class Job(NamedTuple):
    """What a job reads and where it writes.

    Attributes:
      entries: name -> entry of `data.sources`.
      lengths: name -> number of records.
      output: a new folder, local or remote.
    """

    entries: dict[str, dict[str, Any]]
    lengths: dict[str, int]
    output: str


def open_job(data: Sequence[Named], output: str) -> Job:
    """Opens the sources once, so that mistakes show before anything runs, and makes the folder.

    Raises:
      UserError: a source that cannot be opened, two of one name, or a folder that holds something.
    """
    entries, lengths = open_sources(data)
    return Job(entries, lengths, new_folder(output))


def open_sources(data: Sequence[Named]) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """`entries` and `lengths` of a `Job`; UserError as `open_job`."""
    entries: dict[str, dict[str, Any]] = {}
    for named in data:
        for name, entry in named.entries.items():
            if name in entries:
                raise UserError(f"The source {name!r} is named more than once.")
            entries[name] = entry
    lengths = {name: len(open_source(entry, name)) for name, entry in entries.items()}
    if max(lengths.values()) >> SOURCE_BITS:
        raise UserError(f"A source may have {1 << SOURCE_BITS:,} records at most.")
    return entries, lengths


def new_folder(path: str) -> str:
    """Makes a folder; the path comes back absolute.

    Raises:
      UserError: it holds something, or cannot be made.
    """
    try:
        if is_remote(path):
            system, inner = filesystem(path)
            full = system.exists(inner) and (system.isfile(inner) or bool(system.ls(inner)))
            if not full:
                system.makedirs(inner, exist_ok=True)
        else:
            path = os.path.abspath(path)
            full = os.path.isfile(path) or (os.path.isdir(path) and bool(os.listdir(path)))
            if not full:
                os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {path!r} cannot be made: {error}.") from error
    if full:
        raise UserError(f"{path!r} holds something already; name another --output or remove it.")
    return path


def write_file(path: str, data: bytes) -> None:
    """A file that is there whole or not at all, also where two workers write the same one."""
    if is_remote(path):
        system, inner = filesystem(path)
        system.pipe_file(inner, data)  # an object store shows no half objects
        return
    part = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.part")
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, path)


def join(folder: str, name: str) -> str:
    """Path of a file in a folder, local or remote."""
    return f"{folder.rstrip('/')}/{name}"


def with_filters(entry: Mapping[str, Any], filters: Sequence[str]) -> dict[str, Any]:
    """The source's own filter, and `NAME=VALUE` of `clipjax.data.filters.Filter`'s arguments.

    Raises:
      UserError: one that is given twice.
    """
    found: dict[str, Any] = {}
    for name, value in (parse_setting(text, "--filter") for text in filters):
        if name in found:
            raise UserError(
                f"--filter {name} is given more than once; write all of it into one, such as ranges={{...}}."
            )
        found[name] = value
    return dict(entry.get("filter") or {}) | found


def conditions(config: Mapping[str, Any], name: str) -> list[tuple[str, Filter]]:
    """(reason, filter) for every condition of a filter, so that each can be counted by itself.

    Raises:
      UserError: see `make_filter`.
    """
    make_filter(config, name)
    found = []
    for key, value in config.items():
        if key in ("ranges", "values"):
            parts = [(f"{key} of {f!r}", {key: {f: v}}) for f, v in dict(value).items()]
        else:
            parts = [(key, {key: value})]
        found += [(f"filter: {what}", make_filter(part, name)) for what, part in parts]
    return found


def read(source: Any, index: int) -> tuple[dict[str, Any] | None, str]:
    """(record, ""), or (None, why it is none).

    Raises:
      UserError: the files cannot be read, which must not look like a bad record: the runner tries again.
    """
    try:
        record = source[index]
        image = record.get("image")
        if image is None or (isinstance(image, list | tuple) and not image):
            return None, "there is no image"
        return record, ""
    except BadRecord as error:
        return None, str(error)
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(
            f"Record {index} cannot be read ({type(error).__name__}: {error}); start the job again."
        ) from error
    except Exception as error:  # of a library that read a damaged file, or of somebody's source
        return None, f"cannot be read ({type(error).__name__})"


class Sources(list[Any]):
    """Opened sources; a class, because `Shared` holds them weakly."""

    def __init__(self, entries: Mapping[str, dict[str, Any]]):
        super().__init__(open_source(entry, name) for name, entry in entries.items())


class Read(beam.DoFn):
    """(source, start, stop) -> (id, record); (id, {"reason": ...}) as `left_out`. Sources are opened once a process."""

    def __init__(self, entries: Mapping[str, dict[str, Any]]):
        self._entries, self._shared = dict(entries), Shared()

    def setup(self) -> None:
        """Opens the sources, or takes what another thread has opened."""
        self._sources = self._shared.acquire(lambda: Sources(self._entries))

    def process(self, piece: tuple[int, int, int]) -> Iterator[Any]:
        """Reads a range."""
        number, start, stop = piece
        for index in range(start, stop):
            record, reason = read(self._sources[number], index)
            ident = (number << SOURCE_BITS) + index
            if record is None:
                yield beam.pvalue.TaggedOutput("left_out", (ident, {"reason": reason}))
            else:
                yield ident, record


def read_all_records(pipeline: Any, job: Job) -> Any:
    """All records of the sources, as the outputs `records` and `left_out` of `Read`."""
    return (
        pipeline
        | "Sources" >> beam.Create(list(enumerate(job.lengths.values())))
        | "Ranges" >> beam.FlatMap(ranges)
        | "Share out" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(Read(job.entries)).with_outputs("left_out", main="records")
    )


def ranges(source: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(number, length) -> (number, start, stop) ..."""
    number, length = source
    return [(number, s, min(s + RANGE, length)) for s in range(0, length, RANGE)]


class WriteLines(beam.DoFn):
    """(file, [(id, facts), ...]) -> a file of JSON lines in the order of the ids, and counts by reason."""

    def __init__(self, names: Sequence[str], paths: Sequence[str]):
        self._names, self._paths = list(names), list(paths)

    def process(self, group: tuple[int, Iterable[Any]]) -> Iterator[dict[str, int]]:
        """Writes one file."""
        number, facts = group
        found = sorted((f for f in facts if f is not None), key=lambda f: f[0])
        lines = [json.dumps(self._place(i) | self._named(f)) + "\n" for i, f in found]
        write_file(self._paths[number], "".join(lines).encode())
        counts = collections.Counter(f["reason"] for _, f in found)
        for reason, count in counts.items():
            Metrics.counter(COUNTS, reason).inc(count)
        yield dict(counts)

    def _place(self, ident: int) -> dict[str, Any]:
        index = ident & ((1 << SOURCE_BITS) - 1)
        return {"source": self._names[ident >> SOURCE_BITS], "index": index}

    def _named(self, facts: dict[str, Any]) -> dict[str, Any]:
        return facts | {"of": self._place(facts["of"])} if "of" in facts else facts


def write_removed(
    removed: Any, job: Job, plan: Mapping[str, Any], notes: Sequence[Any] = ()
) -> None:
    """Writes removed-NNNNN.jsonl, each about `LINES` records of a source, and, when all are there, the summary.

    Args:
      removed: (id, {"reason": ..., maybe "of": id, ...}).
      job: the sources.
      plan: what the job did, for the summary.
      notes: collections of dicts of further counts.
    """
    files = [1 + (n - 1) // LINES for n in job.lengths.values()]
    before, total = [sum(files[:s]) for s in range(len(files))], sum(files)
    names = [f"removed-{n:05d}-of-{total:05d}.jsonl" for n in range(total)]

    def place(item: tuple[int, Any]) -> tuple[int, Any]:
        index = item[0] & ((1 << SOURCE_BITS) - 1)
        return before[item[0] >> SOURCE_BITS] + index // LINES, item

    # Files of which nothing is removed are there, too.
    all_files = removed.pipeline | "Files" >> beam.Create([(n, None) for n in range(total)])
    counts = (
        (removed | "To files" >> beam.Map(place), all_files)
        | "With files" >> beam.Flatten()
        | "By file" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(WriteLines(list(job.lengths), [join(job.output, n) for n in names]))
        | "As removed" >> beam.Map(lambda found: {"removed": found})
    )
    head = {"clipjax": __version__, "sources": job.lengths, "records": sum(job.lengths.values())}
    _ = (
        (counts, *(n | f"As note {i}" >> beam.Map(_noted) for i, n in enumerate(notes)))
        | "All counts" >> beam.Flatten()
        | "Merge" >> beam.CombineGlobally(merge)
        | "Summary" >> beam.Map(_write_summary, job.output, head | dict(plan), names)
    )


def _noted(found: Mapping[str, int]) -> dict[str, Any]:
    return {"counts": dict(found)}


def _write_summary(
    counts: Mapping[str, Any], output: str, head: Mapping[str, Any], files: Sequence[str]
) -> None:
    removed = dict(sorted(counts.get("removed", {}).items()))
    kept = head["records"] - sum(removed.values())
    tail = {"counts": dict(sorted(counts.get("counts", {}).items())), "files": list(files)}
    write_summary(output, {**head, "kept": kept, "removed": removed, **tail})


def write_summary(output: str, summary: Mapping[str, Any]) -> None:
    """The last file of a job."""
    text = json.dumps(as_json(summary), indent=1)
    write_file(join(output, SUMMARY), (text + "\n").encode())


def merge(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of counts, also nested ones; of what is called "largest ..." the largest."""
    total: dict[str, Any] = {}
    for counts in found:
        for name, value in counts.items():
            if isinstance(value, Mapping):
                total[name] = merge([total.get(name, {}), value])
            elif name.startswith("largest"):
                total[name] = max(total.get(name, 0), value)
            else:
                total[name] = total.get(name, 0) + value
    return total


class Removed:
    """Which records of a source some lists name; one bit a record.

    Args:
      folders: outputs of jobs that have ended.
      name, length: of the source.

    Raises:
      UserError: such a job has not ended, did not read this source, or read another number of records.
    """

    def __init__(self, folders: Sequence[str], name: str, length: int):
        self._bits = np.zeros(length // 8 + 1, np.uint8)
        for folder in folders:
            for file in check_removed(folder, name, length)["files"]:
                self._add(join(folder, file), name)

    def _add(self, path: str, name: str) -> None:
        lines = map(json.loads, read_all(path).splitlines())
        index_R = np.array([v["index"] for v in lines if v["source"] == name], np.int64)
        masks = np.left_shift(1, index_R & 7).astype(np.uint8)
        np.bitwise_or.at(self._bits, index_R >> 3, masks)

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] >> (index & 7) & 1)


def check_removed(folder: str, name: str, length: int) -> dict[str, Any]:
    """The summary of a job whose list is asked for; see `Removed`."""
    try:
        found = json.loads(read_all(join(folder, SUMMARY)))
        lengths, _ = found["sources"], found["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder!r} is no output of a filter or dedup job that has ended ({type(error).__name__})."
        ) from error
    if name not in lengths:
        raise UserError(f"The list in {folder!r} is not about {name!r}{nearest(name, lengths)}.")
    if lengths[name] != length:
        raise UserError(
            f"The list in {folder!r} is about {lengths[name]:,} records of {name!r}, which has {length:,}."
        )
    return found
