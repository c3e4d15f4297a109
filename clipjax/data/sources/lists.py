"""A list of a data set's files and how many samples each has, so that a set of 100,000 starts without opening each.

`clipjax data index` writes it with --list, for tars `web.tars` and for Parquet `web.parquets`: a line of JSON for each
file, `{"file": path, "bytes": size, "samples": [n, ...]}`; of a Parquet file the rows of each row group. Local paths
are relative to the list's folder. It stands where patterns can: `shards="web.tars"`, `files="web.parquets"`.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from clipjax.data.sources.files import filesystem, is_remote, read_all
from clipjax.errors import UserError

TARS, PARQUETS = ".tars", ".parquets"


class Listed(NamedTuple):
    """What a list says of a file: its samples, in as many parts as it is read in, and its size when it was listed."""

    samples: tuple[int, ...]
    bytes: int


def is_list(patterns: Any, suffix: str) -> bool:
    """Whether a source was given a list instead of patterns."""
    return isinstance(patterns, str) and patterns.endswith(suffix)


def write(files: Mapping[str, Listed], path: str, suffix: str) -> None:
    """Writes a list; it is there whole or not at all.

    Raises:
      UserError: another ending than `suffix`.
    """
    if not path.endswith(suffix):
        raise UserError(f"The list {path!r} must end with {suffix}.")
    lines = []
    for file, listed in files.items():
        local = not is_remote(file) and not is_remote(path)
        name = os.path.relpath(file, os.path.dirname(path) or ".") if local else file
        lines.append(json.dumps({"file": name, "bytes": listed.bytes, "samples": listed.samples}))
    data = ("\n".join(lines) + "\n").encode()
    if is_remote(path):
        system, inner = filesystem(path)
        system.pipe_file(inner, data)
        return
    with open(f"{path}.part", "wb") as target:
        target.write(data)
    os.replace(f"{path}.part", path)


def read(path: str) -> dict[str, Listed]:
    """Files by path, in the list's order.

    Raises:
      UserError: no such list, a line that is broken, or a file that is listed twice.
    """
    try:
        text = read_all(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {path!r} cannot be read: {error}.") from error
    found: dict[str, Listed] = {}
    folder = os.path.dirname(path)
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            file, listed = row["file"], Listed(tuple(map(int, row["samples"])), int(row["bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"Line {number} of {path} is not a file with its bytes and samples; make the list again with: "
                "clipjax data index --list"
            ) from error
        place = file if is_remote(file) or os.path.isabs(file) else os.path.join(folder, file)
        if place in found:
            raise UserError(f"Line {number} of {path} lists {file} a second time.")
        found[place] = listed
    return found
