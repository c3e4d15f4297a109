"""Writes scenes with boxes, masks and region texts (docs/scenes.md) as ArrayRecord files.

python tools/make_scenes.py --output=scenes --count=100000 --seed=0 --shards=16 --jpeg=95
python tools/make_scenes.py --sheet=scenes.png --count=6     # an image of the first scenes instead

The other settings are those of clipjax.data.scenes.Scenes: --objects=1,6 --backgrounds=photos,plain --jpeg=95.
A folder that holds anything is refused.
"""

import argparse
import ast
import concurrent.futures
import inspect
import json
import multiprocessing
from pathlib import Path
from typing import Any

from clipjax import registry
from clipjax.data.bad import BadRecord
from clipjax.data.scenes import Scenes
from clipjax.data.scenes.sheet import sheet
from clipjax.data.sources.array_record import write
from clipjax.errors import UserError

SETTINGS = [name for name in inspect.signature(Scenes).parameters if name != "length"]


def value(text: str) -> Any:
    """1 -> 1; 1,6 -> (1, 6); photos,plain -> ("photos", "plain"); photos -> "photos"."""
    parts = [_value(part) for part in text.split(",") if part]
    return parts[0] if len(parts) == 1 and "," not in text else tuple(parts)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def shard_path(folder: Path, shard: int, shards: int) -> Path:
    """Where a shard lies."""
    return folder / f"scenes-{shard:05d}-of-{shards:05d}.array_record"


def write_shard(settings: dict[str, Any], folder: Path, shard: int, shards: int) -> tuple[int, int]:
    """Writes scenes shard, shard + shards, ...; returns how many, and how many had no object and were left out."""
    scenes, empty = Scenes(**settings), 0

    def records():
        nonlocal empty
        for index in range(shard, len(scenes), shards):
            try:
                yield scenes[index]
            except BadRecord:
                empty += 1

    return write(records(), shard_path(folder, shard, shards)), empty


def write_all(settings: dict[str, Any], folder: Path, shards: int, processes: int) -> None:
    """All shards, and the settings as scenes.json.

    Raises:
      UserError: the folder holds something, or more shards than scenes.
    """
    if not 1 <= shards <= settings["length"] or processes < 1:
        raise UserError("--shards must be from 1 to --count, and --processes at least 1.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already; name another --output or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(settings, folder, shard, shards) for shard in range(shards)]
    if processes == 1:
        done = [write_shard(*task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
            done = list(pool.map(write_shard, *zip(*tasks, strict=True)))
    (folder / "scenes.json").write_text(json.dumps(Scenes(**settings).settings, indent=1) + "\n")
    written, empty = map(sum, zip(*done, strict=True))
    print(f"{written} scenes in {shards} files; {empty} without any object left out.")


def main(arguments: list[str] | None = None) -> None:
    """Exits with status 2 on a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder of the ArrayRecord files")
    parser.add_argument("--sheet", type=Path, help="PNG of the scenes with boxes and texts")
    parser.add_argument("--count", type=int, required=True, help="number of scenes")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    for name in SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=value)
    args = parser.parse_args(arguments)
    given = {k: getattr(args, k) for k in SETTINGS if getattr(args, k) is not None}
    settings = {"length": args.count} | given
    try:
        if (args.output is None) == (args.sheet is None):
            raise UserError("Name one of --output and --sheet.")
        scenes = registry.call(Scenes, settings, "Scenes")
        if args.sheet is None:
            write_all(settings, args.output, args.shards, args.processes)
        elif args.sheet.exists():
            raise UserError(f"{args.sheet} exists already; name another --sheet or remove it.")
        else:
            page = sheet([scenes[i] for i in range(len(scenes))])
            page.quantize(256, dither=0).save(args.sheet, optimize=True)
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
