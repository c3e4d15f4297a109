"""How fast, and in how much memory, a large checkpoint is converted: beside `cp`, in one run, interleaved.

A ViT-bigG-14 of open_clip with random weights (2.54 billion parameters) is written once; then, in turn and several
times, it is copied, converted to clipjax's own checkpoint, and that one converted back. Each conversion is a process
of its own, whose peak memory the kernel reports.

    python tools/bench_convert.py --folder=DIR [--model=ViT-bigG-14] [--dtype=float16] [--rounds=3]

Needs room for three copies, 5 GB each in float16. Prints a Markdown table.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from clipjax.convert import open_clip_config, open_clip_export
from clipjax.convert.files import open_tensors, write_safetensors
from clipjax.convert.formats import open_clip
from clipjax.convert.shapes import parameter_shapes
from clipjax.models.variants import model_config


def write_source(folder: Path, name: str, dtype: str) -> None:
    """A directory of open_clip with random weights; one tensor at a time."""
    folder.mkdir(parents=True)
    model = model_config(name)
    described = open_clip_export.from_model(model)
    layout = open_clip_config.Layout.of(described, {})
    entries = open_clip.table(model, layout).entries(parameter_shapes(model))
    rng = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...]) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * 0.02).astype(dtype)

    rows = (
        (key, entry.shape, np.dtype(dtype), lambda s=entry.shape: tensor(s))
        for key, entry in entries.items()
    )
    write_safetensors(folder / "open_clip_model.safetensors", rows, {"format": "pt"})
    (folder / open_clip.CONFIG).write_text(json.dumps({"model_cfg": described}))


def size_of(path: Path) -> int:
    """Bytes of a file or of all files of a directory."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def timed(command: list[str], target: Path) -> tuple[float, float]:
    """(seconds until the result is on disk, peak memory in GB) of a process that makes `target`."""
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    subprocess.run(["sync", "-f", str(target.parent)], check=True)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss / 1e6


def equal(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors, bit for bit."""
    a, b = open_tensors(first).tensors, open_tensors(second).tensors
    return a.keys() == b.keys() and all(np.array_equal(a[k].read(), b[k].read()) for k in a)


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--model", default="ViT-bigG-14")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    source, ours, back, copy = (args.folder / n for n in ("source", "ours", "back", "copy"))
    if not source.exists():
        write_source(source, args.model, args.dtype)
    convert = [sys.executable, "-m", "clipjax.cli", "convert"]
    steps = {
        "cp": (["cp", "-r", str(source), str(copy)], copy),
        "open_clip -> clipjax": ([*convert, f"--source={source}", f"--target={ours}"], ours),
        "clipjax -> open_clip": (
            [*convert, f"--source={ours}", f"--target={back}", "--to=open_clip"],
            back,
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, (command, target) in steps.items():
            found[name].append(timed(command, target))
    gigabytes = size_of(source) / 1e9
    same = equal(*(folder / "open_clip_model.safetensors" for folder in (source, back)))
    print(
        f"{args.model}, {args.dtype}, {gigabytes:.2f} GB, best of {args.rounds}; back bit for bit: {same}"
    )
    print("| | seconds | MB/s | to cp | peak memory, file included |\n|---|---|---|---|---|")
    base = min(seconds for seconds, _ in found["cp"])
    for name, runs in found.items():
        seconds, memory = min(runs)[0], max(m for _, m in runs)
        rate = 1000 * gigabytes / seconds
        print(f"| {name} | {seconds:.1f} | {rate:.0f} | {seconds / base:.2f} | {memory:.2f} GB |")


if __name__ == "__main__":
    main()
