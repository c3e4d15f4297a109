"""Every run of this folder's README, one after another; what is done already is not done again.

  python experiments/cloc/sweep.py --output=runs/cloc --jobs=2
  python experiments/cloc/sweep.py --output=runs/cloc --table

Scenes are composed once and read from files. Runs of one budget get the same FLOPs, as counted from their train steps:
those whose step is cheaper see more samples. The arms and three seeds have the whole budget, `half-` (ablations) half
of it, `long-` twice. A run that was stopped goes on where it was.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from clipjax.config import load_config
from clipjax.defaults import base_config
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "cloc_scenes.py"
SCENES = 20_000
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """One run: an arm of the config, a seed, samples of `cloc` whose FLOPs it gets, and further overrides."""

    name: str
    arm: str
    seed: int
    samples: int
    overrides: tuple[str, ...] = ()
    after: str = ""


def runs(samples: int, folder: Path) -> list[Run]:
    """The main comparison, ablations at half of its budget, and one seed at twice of it."""
    found = [
        Run(f"{arm}-{seed}", arm, seed, samples)
        for seed in SEEDS
        for arm in ("cloc", "roi_align", "clip")
    ]
    found += [
        Run(f"half-{arm}", arm, 0, samples // 2)
        for arm in ("cloc", "no_filter", "no_grounding", "no_positions", "m1", "m2")
    ]
    found += [Run(f"long-{arm}", arm, 0, 2 * samples) for arm in ("cloc", "roi_align", "clip")]
    start = {"": str(folder / "clip-0"), "regions": "fresh"}
    found += [
        Run(f"half-tuned-{arm}", arm, 0, samples // 2, (f"init={start}",), "clip-0")
        for arm in ("cloc", "roi_align")
    ]
    return found


def flops(arm: str) -> float:
    """FLOPs of training on one sample."""
    config = load_config(f"{CONFIG}:{arm}", base_config())
    return prepare(config, make_mesh(config.mesh), SCENES).flops_per_sample


def write_scenes(folder: Path) -> str:
    """The training scenes as files; returns the override that reads them."""
    files = folder / "scenes"
    if not (files / "scenes.json").exists():
        entry = load_config(f"{CONFIG}:cloc", base_config()).data.sources.scenes.to_dict()
        settings = [
            f"--{k.replace('_', '-')}={v if isinstance(v, str) else _flat(v)}"
            for k, v in entry.items()
            if k not in ("kind", "length")
        ]
        tool = ROOT / "tools" / "make_scenes.py"
        count = [f"--count={SCENES}", "--shards=8", "--jpeg=95", f"--output={files}"]
        subprocess.run([sys.executable, tool, *count, *settings], check=True)
    source = {"scenes": {"kind": "array_record", "files": str(files / "*.array_record")}}
    return f"data.sources={source}"


def _flat(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def train(run: Run, samples: int, folder: Path, source: str, core: int | None) -> None:
    """One run in a process of its own, on one core if there are several jobs."""
    workdir = folder / run.name
    overrides = [source, f"seed={run.seed}", f"total_samples={samples}", *run.overrides]
    command = [sys.executable, "-m", "clipjax.cli", "train", f"--config={CONFIG}:{run.arm}"]
    command += [f"--workdir={workdir}", *(f"--config.{o}" for o in overrides)]
    command += ["--config.data.threads=1"]
    env = dict(os.environ)
    if core is not None:
        one = "--xla_cpu_multi_thread_eigen=false"
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {one}".strip()
    with open(folder / f"{run.name}.log", "w") as log:
        subprocess.run(
            command,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )


def train_all(todo: list[Run], folder: Path, jobs: int) -> None:
    """Runs what has no results yet."""
    source = write_scenes(folder)
    cost = {arm: flops(arm) for arm in {run.arm for run in todo} | {"cloc"}}
    (folder / "flops.json").write_text(json.dumps(cost, indent=1, sort_keys=True))
    cores: queue.Queue[int | None] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0))[:jobs] if jobs > 1 else [None]:
        cores.put(core)

    def one(run: Run) -> None:
        if (folder / run.name / "results.json").exists():
            return
        core = cores.get()
        try:
            print(f"{run.name} ...", flush=True)
            samples = round(run.samples * cost["cloc"] / cost[run.arm])
            train(run, samples, folder, source, core)
        except subprocess.CalledProcessError:
            print(f"{run.name} failed; see {folder / run.name}.log", flush=True)
        finally:
            cores.put(core)

    for stage in ([r for r in todo if not r.after], [r for r in todo if r.after]):
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, stage))


COLUMNS = (
    ("mAcc", "classes", "mAcc"),
    ("region to text R@10", "regions", "region_to_text/R@10"),
    ("text to region R@10", "regions", "text_to_region/R@10"),
    ("grounding IoU", "boxes", "iou"),
    ("hard negatives", "hard_negatives", "accuracy"),
    ("image to text R@5", "images", "image_to_text/R@5"),
    ("text to image R@5", "images", "text_to_image/R@5"),
)


def table(folder: Path) -> str:
    """Markdown: mean and standard deviation over the seeds of each arm, in percent."""
    groups: dict[str, list[dict[str, float]]] = {}
    for file in sorted(folder.glob("*/results.json")):
        found = json.loads(file.read_text())
        name = file.parent.name
        name = name if name.startswith(("half-", "long-")) else name.rsplit("-", 1)[0]
        for how in ("_roi_align", "_crop") if name.endswith("clip") else ("",):
            groups.setdefault(name + how, []).append(_row(found, how))
    lines = ["| run | seeds | " + " | ".join(c[0] for c in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for name, rows in groups.items():
        if not any(rows):
            continue
        cells = [_cell([row.get(column[0]) for row in rows]) for column in COLUMNS]
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(results: dict[str, dict[str, dict[str, float]]], how: str) -> dict[str, float]:
    row = {}
    for title, evaluator, metric in COLUMNS:
        name = evaluator + (how if evaluator in ("classes", "regions") else "")
        if name in results:
            row[title] = results[name]["metrics"][metric]
    return row


def _cell(values: list[float | None]) -> str:
    values = [100 * v for v in values if v is not None]
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--samples", type=int, default=60_000, help="of the arm cloc")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument("--only", default="", help="runs whose name begins so")
    parser.add_argument("--table", action="store_true", help="print the table of what is done")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.table:
        todo = [r for r in runs(args.samples, args.output) if r.name.startswith(args.only)]
        train_all(todo, args.output, args.jobs)
    print(table(args.output))


if __name__ == "__main__":
    main()
