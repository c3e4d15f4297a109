"""`clipjax eval`: evaluators on a checkpoint of any format."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.table import Table

from clipjax import checkpoint
from clipjax.commands.arguments import add_job, join
from clipjax.config import apply_override, load_config
from clipjax.defaults import base_config
from clipjax.encode.inference import Model, load_with_encoder
from clipjax.errors import UserError
from clipjax.evals import make_evaluator, shown, unit
from clipjax.job.distributed import is_primary
from clipjax.job.watchdog import guard
from clipjax.log.console import console
from clipjax.log.outputs import check_writable
from clipjax.log.writers import read_results
from clipjax.models import compute_dtype
from clipjax.registry import nearest
from clipjax.workdir import versions


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a workdir, or a checkpoint of any format",
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:arg]",
        help="run its `evals`; default: those of the checkpoint's own config",
    )
    parser.add_argument("--suite", metavar="NAME", help="only this evaluator")
    parser.add_argument(
        "--output", metavar="FILE.jsonl", help="append one JSON line for each evaluator"
    )
    parser.epilog = "Settings of evaluators can be overridden: --config.evals.NAME.chunk=64"
    add_job(parser)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    join(args, base_config().run)
    with guard(args.checkpoint):
        return evaluate(args.checkpoint, args.suite, args.output, args.config, overrides)


def evaluate(
    path: str,
    suite: str | None = None,
    output: str | None = None,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Runs evaluators on the (averaged) parameters of a checkpoint.

    The model, its preprocessing and its tokenizer are the checkpoint's; of a config only `evals` is read. In a job of
    several processes, the primary process prints and writes.

    Args:
      path: what `clipjax.load` takes: a workdir, or a checkpoint of any format.
      suite: name of the only evaluator to run; None runs all.
      output: file to which one JSON line an evaluator is appended, as soon as it has finished.
      config: "FILE[:arg]" whose evaluators are run; None: the checkpoint's own.
      overrides: `evals.a.b=value` each.

    Returns:
      0, when all have run.

    Raises:
      UserError: no checkpoint, no evaluator (of that name), an evaluator that cannot work with this model or without
        its data, or a file that cannot be written.
    """
    if output is not None:
        check_writable(Path(output))
    for override in overrides:
        if not override.startswith("evals."):
            raise UserError(
                f"clipjax eval reads only `evals` of a config, so --config.{override} does nothing; leave it out."
            )
    # A mistake in the file shows before a large checkpoint is read.
    given = None if config is None else load_config(config, base_config(), overrides).evals
    if config is not None:
        _check_names(given, suite, f"The config {config!r}", "")
    meta = _recorded(path)
    model, encoder = load_with_encoder(meta["checkpoint"])
    if given is None:
        own = ConfigDict({"evals": model.config.get("evals", {})}, type_safe=False)
        where = f"The config of the checkpoint {path!r}"
        _check_names(own.evals, suite, where, "; name a config that does, with --config=FILE")
        for override in overrides:
            apply_override(own, override)
        given = own.evals
    shared = _shared(model)
    results = {}
    for name in [suite] if suite is not None else sorted(given):
        evaluator = make_evaluator(name, given[name], encoder)
        metrics = evaluator.run(model.params)
        protocol = evaluator.protocol | shared
        results[name] = {"metrics": metrics, "protocol": protocol}
        if output is not None and is_primary():
            line = {
                "suite": name,
                "checkpoint": meta["checkpoint"],
                "samples": meta["samples"],
                "metrics": metrics,
                "protocol": protocol,
                "versions": meta["versions"],
            }
            with open(output, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    if is_primary():
        at = "" if meta["samples"] is None else f" at {meta['samples']:,} samples"
        console().print(results_table(results, f"{path}{at}"))
    return 0


def _recorded(path: str) -> dict[str, Any]:
    """What is recorded of a checkpoint: which it is, its samples seen (None: not known) and versions."""
    if not checkpoint.is_checkpoint(path):
        return {"checkpoint": path, "samples": None, "versions": versions()}
    folder = checkpoint.find(path)  # a run that goes on may have a newer one in a moment
    meta, _ = checkpoint.read_meta(folder)
    return {"checkpoint": str(folder), "samples": meta["samples"], "versions": meta["versions"]}


def _check_names(entries: Mapping[str, Any], suite: str | None, where: str, more: str) -> None:
    if not entries:
        raise UserError(f"{where} names no evaluators{more}.")
    if suite is not None and suite not in entries:
        raise UserError(f"{where} has no evaluator {suite!r}{nearest(suite, entries)}.")


def _shared(model: Model) -> dict[str, Any]:
    """What the numbers of all evaluators depend on."""
    config = model.config.model
    found: dict[str, Any] = {
        "preprocess": model.config.preprocess.to_dict(),
        "dtype": compute_dtype(config.get("dtype", "auto")),
    }
    if "image" in config:
        image = {
            "size": config.image.get("size"),
            "mean": config.get("mean"),
            "std": config.get("std"),
        }
        found["image"] = {name: value for name, value in image.items() if value is not None}
    if model.tokenizer is not None:
        found["tokenizer"] = checkpoint.pack_tokenizer(model.tokenizer)["config"]
    return found


def show_run(workdir: str) -> None:
    """Prints the last results of a finished run, and where its report and checkpoints are."""
    folder = Path(workdir)
    results = read_results(folder / "results.json")
    if results:
        console().print(results_table(results, "Held-out results"))
    print(f"Report: {folder / 'report.html'}   Checkpoints: {folder / 'checkpoints'}")


def results_table(results: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Metrics of all evaluators with their units, beside what chance gives where that is known."""
    table = Table("evaluator", "metric", title=title, title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("chance", justify="right")
    table.add_column("unit")
    for name, result in results.items():
        protocol = result.get("protocol", {})
        chances, units = protocol.get("chance", {}), protocol.get("units", {})
        for metric, value in result["metrics"].items():
            of = unit(metric, value, units)
            chance = shown(chances[metric], of) if metric in chances else ""
            table.add_row(name, metric, shown(value, of), chance, of)
        table.add_section()
    return table
