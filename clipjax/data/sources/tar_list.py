"""A list of indexed tars and their numbers of samples in one file: a set of 100,000 starts without opening each.

`clipjax data index TAR ... --list=web.tars` writes it: a line of JSON for each tar, `{"tar": path, "samples": n,
"bytes": n}`; local paths are relative to the list's folder. It stands where patterns of tars can: `shards="web.tars"`.
"""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

from clipjax.data.sources.files import filesystem, is_remote, read_all
from clipjax.errors import UserError

SUFFIX = ".tars"


class Listed(NamedTuple):
    """What a list says of a tar: its samples, and its size when it was indexed."""

    samples: int
    bytes: int


def write(tars: Mapping[str, Listed], path: str) -> None:
    """Writes a list; it is there whole or not at all.

    Raises:
      UserError: another ending than `.tars`.
    """
    if not path.endswith(SUFFIX):
        raise UserError(f"The list {path!r} must end with {SUFFIX}.")
    lines = []
    for tar, listed in tars.items():
        local = not is_remote(tar) and not is_remote(path)
        name = os.path.relpath(tar, os.path.dirname(path) or ".") if local else tar
        lines.append(json.dumps({"tar": name, **listed._asdict()}))
    data = ("\n".join(lines) + "\n").encode()
    if is_remote(path):
        system, inner = filesystem(path)
        system.pipe_file(inner, data)
        return
    with open(f"{path}.part", "wb") as file:
        file.write(data)
    os.replace(f"{path}.part", path)


def read(path: str) -> dict[str, Listed]:
    """Tars by path, in the list's order.

    Raises:
      UserError: no such file, a line that is broken, or a tar that is listed twice.
    """
    try:
        text = read_all(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of tars {path!r} cannot be read: {error}.") from error
    found: dict[str, Listed] = {}
    folder = os.path.dirname(path)
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            tar, listed = row["tar"], Listed(int(row["samples"]), int(row["bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"Line {number} of {path} is not a tar with its samples and bytes; make the list again with: "
                "clipjax data index --list"
            ) from error
        place = tar if is_remote(tar) or os.path.isabs(tar) else os.path.join(folder, tar)
        if place in found:
            raise UserError(f"Line {number} of {path} lists {tar} a second time.")
        found[place] = listed
    return found
