"""`clipjax data index`: one pass over tars, so that their samples can be read at random."""

import concurrent.futures
import os
from collections.abc import Sequence
from pathlib import Path

from clipjax.data.sources import tar_index
from clipjax.data.sources.files import expand, is_remote, size_of
from clipjax.errors import UserError


def index(
    shards: Sequence[str], output: str | None = None, workers: int = 4, again: bool = False
) -> int:
    """Writes the indices that are not there yet, and prints what was found.

    Args:
      shards: paths or patterns of tars.
      output: folder for the indices; None: beside the tars.
      workers: tars read at once.
      again: also where an index is there already.

    Returns:
      0; 1 where a tar could not be read (the others are indexed).

    Raises:
      UserError: no such tars, or tars of one name that would share an index.
    """
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
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = {p: pool.submit(_one, p, tar_index.index_path(p, output), again) for p in paths}
        for path, job in jobs.items():
            try:
                found = job.result()
            except (UserError, OSError) as error:
                failed += 1
                print(f"{path}: {error}")
                continue
            if found is None:
                kept += 1
                continue
            made.append(found)
            for reason, count in found.remarks.items():
                print(f"{path}: {count:,} left out ({reason})")
    sums = tar_index.total(made)
    print(
        f"{len(made):,} indexed: {sums['samples']:,} samples of {sums['members']:,} files; {kept:,} were indexed "
        f"already; {failed:,} cannot be read."
    )
    return 1 if failed else 0


def _one(tar: str, target: str, again: bool) -> tar_index.TarIndex | None:
    """The new index; None if a good one is there."""
    if not again:
        try:
            if tar_index.read(target).bytes == size_of(tar):
                return None
        except UserError:
            pass  # missing or damaged
    found = tar_index.scan(tar)
    tar_index.write(found, target)
    return found
