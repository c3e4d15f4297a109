"""`clipjax eval`: the evaluators of a checkpoint's config."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from clipjax import checkpoint
from clipjax.commands.arguments import add_job, join
from clipjax.defaults import base_config
from clipjax.encode.inference import load_with_encoder
from clipjax.errors import UserError
from clipjax.evals import make_evaluator
from clipjax.job.distributed import first
from clipjax.job.watchdog import guard
from clipjax.log.console import console
from clipjax.log.outputs import check_writable
from clipjax.log.writers import read_results
from clipjax.models import compute_dtype
from clipjax.registry import nearest


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="a workdir or one checkpoint"
    )
    parser.add_argument("--suite", metavar="NAME", help="only this evaluator")
    parser.add_argument(
        "--output", metavar="FILE.jsonl", help="append one JSON line for each evaluator"
    )
    add_job(parser)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    del overrides
    join(args, base_config().run)
    with guard(args.checkpoint):
        return evaluate(args.checkpoint, args.suite, args.output)


def evaluate(path: str, suite: str | None = None, output: str | None = None) -> int:
    """Runs the evaluators of a checkpoint's own config on its (averaged) parameters.

    In a job of several processes, process 0 prints and writes.

    Args:
      path: a workdir or one checkpoint.
      suite: name of the only evaluator to run; None runs all.
      output: file to which one JSON line an evaluator is appended, as soon as it has finished.

    Returns:
      0, when all have run.

    Raises:
      UserError: no checkpoint, no evaluator (of that name), or a file that cannot be written.
    """
    if output is not None:
        check_writable(Path(output))
    folder = checkpoint.find(path)
    meta, packed = checkpoint.read_meta(folder)
    entries = meta["config"]["evals"]
    if not entries:
        raise UserError(f"The config of the checkpoint {path!r} names no evaluators.")
    if suite is not None and suite not in entries:
        raise UserError(
            f"The config of the checkpoint {path!r} has no evaluator {suite!r}{nearest(suite, entries)}."
        )
    model, encoder = load_with_encoder(folder)
    shared = {
        "preprocess": model.config.preprocess.to_dict(),
        "image": {
            "size": model.config.model.image.size,
            "mean": model.config.model.mean,
            "std": model.config.model.std,
        },
        "tokenizer": packed["config"],
        "dtype": compute_dtype(model.config.model.dtype),
    }
    results = {}
    for name in [suite] if suite is not None else sorted(entries):
        evaluator = make_evaluator(name, model.config.evals[name], encoder)
        metrics = evaluator.run(model.params)
        protocol = evaluator.protocol | shared
        results[name] = {"metrics": metrics, "protocol": protocol}
        if output is not None and first():
            line = {
                "suite": name,
                "checkpoint": str(folder),
                "samples": meta["samples"],
                "metrics": metrics,
                "protocol": protocol,
                "versions": meta["versions"],
            }
            with open(output, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    if first():
        console().print(results_table(results, f"{path} at {meta['samples']:,} samples"))
    return 0


def show_run(workdir: str) -> None:
    """Prints the last results of a finished run, and where its report and checkpoints are."""
    folder = Path(workdir)
    results = read_results(folder / "results.json")
    if results:
        console().print(results_table(results, "Held-out results"))
    print(f"Report: {folder / 'report.html'}   Checkpoints: {folder / 'checkpoints'}")


def results_table(results: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Metrics of all evaluators in percent, beside what chance gives where that is known."""
    table = Table("evaluator", "metric", title=title, title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("chance", justify="right")
    for name, result in results.items():
        chances = result.get("protocol", {}).get("chance", {})
        for metric, value in result["metrics"].items():
            chance = f"{100 * chances[metric]:.2f}" if metric in chances else ""
            table.add_row(name, metric, f"{100 * value:.2f}", chance)
        table.add_section()
    return table
