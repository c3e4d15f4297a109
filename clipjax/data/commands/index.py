"""`clipjax data index`: one pass over tars, so that their samples can be read at random; lists of many files."""

import concurrent.futures
import os
from collections.abc import Sequence
from pathlib import Path

from clipjax.data.sources import lists, tar_index
from clipjax.data.sources.files import expand, is_remote, size_of
from clipjax.errors import UserError


def index(
    shards: Sequence[str],
    output: str | None = None,
    workers: int = 4,
    again: bool = False,
    listing: str | None = None,
) -> int:
    """Writes the indices that are not there yet, and prints what was found.

    Args:
      shards: paths or patterns of tars.
      output: folder for the indices; None: beside the tars.
      workers: tars read at once.
      again: also where an index is there already.
      listing: file for the list of all tars that can be read, see `lists`.

    Returns:
      0; 1 where a tar could not be read (the others are indexed).

    Raises:
      UserError: no such tars, or tars of one name that would share an index.
    """
    if all(path.endswith(".parquet") for path in shards):
        return _parquet(shards, workers, listing)
    paths = expand(list(shards), "tar")
    if output:
        names = [os.path.basename(p) for p in paths]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise UserError(
                f"Several tars are called {twice}, so their indices cannot share {output}; index them one folder at a "
                "time."
            )
        if not is_remote(output):
            Path(output).mkdir(parents=True, exist_ok=True)
    if workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}.")
    made, kept, failed = [], 0, 0
    listed: dict[str, lists.Listed] = {}
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = {p: pool.submit(_one, p, tar_index.index_path(p, output), again) for p in paths}
        for path, job in jobs.items():
            try:
                found = job.result()
            except (UserError, OSError) as error:
                failed += 1
                print(f"{path}: {error}")
                continue
            listed[path] = lists.Listed((len(found[0]),), found[0].bytes)
            if found[1]:
                kept += 1
                continue
            found = found[0]
            made.append(found)
            for reason, count in found.remarks.items():
                print(f"{path}: {count:,} left out ({reason})")
    sums = tar_index.total(made)
    print(
        f"{len(made):,} indexed: {sums['samples']:,} samples of {sums['members']:,} files; {kept:,} were indexed "
        f"already; {failed:,} cannot be read."
    )
    if listing:
        _write_list(listed, listing, lists.TARS)
    return 1 if failed else 0


def _parquet(files: Sequence[str], workers: int, listing: str | None) -> int:
    """A list of Parquet files with the rows of their row groups; the files have an index of their own.

    Raises:
      UserError: no `listing`.
    """
    from clipjax.data.sources.parquet import row_groups

    if not listing:
        raise UserError(
            "Parquet files carry their index; --list=FILE.parquets writes a list of them and their row groups, with "
            "which a run starts without opening each."
        )
    paths = expand(list(files), "Parquet file")
    listed, failed = {}, 0
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        for path, job in {p: pool.submit(row_groups, p) for p in paths}.items():
            try:
                listed[path] = lists.Listed(tuple(job.result()), size_of(path))
            except (UserError, OSError) as error:
                failed += 1
                print(f"{path}: {error}")
    _write_list(listed, listing, lists.PARQUETS)
    return 1 if failed else 0


def _write_list(listed: dict[str, lists.Listed], path: str, suffix: str) -> None:
    lists.write(listed, path, suffix)
    samples = sum(sum(file.samples) for file in listed.values())
    print(f"{path}: {len(listed):,} files, {samples:,} samples.")


def _one(tar: str, target: str, again: bool) -> tuple[tar_index.TarIndex, bool]:
    """The index, and whether a good one was there."""
    if not again:
        try:
            found = tar_index.read(target)
            if found.bytes == size_of(tar):
                return found, True
        except UserError:
            pass  # missing or damaged
    found = tar_index.scan(tar)
    tar_index.write(found, target)
    return found, False
