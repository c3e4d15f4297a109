"""VESL, CLOC's labelling of regions, over a data set as an Apache Beam pipeline (README.md beside it).

python -m experiments.cloc.vesl.job 'web/*.tar' --output=regions --captioner.fields='("fused", "text")' --shards=8
python -m experiments.cloc.vesl.job 'scenes/*.array_record' --output=regions --detector=truth --shards=8

SOURCE is named as for `clipjax data convert`. --captioner, --tagger and --detector name a kind or an import path,
'package.module:Name', and --captioner.NAME=VALUE its settings. A job that was stopped goes on when it is started again
with the same arguments. All flags that are not listed here are Beam's, see docs/beam.md. Write them with '='.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from clipjax import registry
from clipjax.data.commands.named import parse_setting
from clipjax.errors import UserError
from tools.beam import corpus

MODELS = ("captioner", "tagger", "detector")


def make_parser() -> argparse.ArgumentParser:
    """The job's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[corpus.source_flags(), corpus.shard_flags()],
    )
    parser.add_argument("--captioner", default="field", help="field, file, transformers")
    parser.add_argument("--tagger", default="textblob", help="textblob, nltk, spacy")
    parser.add_argument("--detector", default="owlv2", help="owlv2, or truth for scenes")
    parser.add_argument("--threshold", type=float, default=0.1, help="of a box's score")
    parser.add_argument("--phrases", type=int, default=20, help="of a record that are kept")
    parser.add_argument("--batch", type=int, default=16, help="records that the models see at once")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with status 2 on a user's mistake."""
    parser = make_parser()
    args, flags = parser.parse_known_args(arguments)
    try:
        report(start(args, flags))
    except UserError as error:
        parser.exit(2, f"{error}\n")


def start(args: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    """Runs the job, or what is missing of it; returns its summary.

    Raises:
      UserError: see `label_regions.make_plan` and the models; or not one record could be labelled.
    """
    chosen, models, flags = _models(args, flags)
    jobs = [f"tools.beam.{name}" for name in ("common", "filtering", "reshard", "resume")]
    jobs.append("experiments.cloc.vesl.label_regions")
    overrides, flags = corpus.begin("vesl", flags, *jobs)
    from experiments.cloc.vesl import label_regions
    from tools.beam import common, resume, running

    # Workers have clipjax, but not the experiment.
    running.travels(*(m for m in list(sys.modules) if m.startswith("experiments.cloc.vesl.")))
    entries, lengths = common.open_sources(corpus.named_data(args, overrides))
    plan = label_regions.make_plan(
        common.Job(entries, lengths, args.output),
        chosen,
        models[0],
        threshold=args.threshold,
        phrases=args.phrases,
        batch=args.batch,
        shards=args.shards,
        shard_size=args.shard_size,
        filters=args.filter,
        remove=args.remove,
        drop=args.drop,
    )
    progress = resume.Progress(args.output, plan)
    try:
        if progress.done:
            print(f"{len(progress.done):,} of {plan['shards']:,} shards are there already.")
        if not progress.finished:
            running.run(lambda p: label_regions.build(p, plan, progress, models), flags)
        summary = json.loads(common.read_all(common.join(progress.output, common.SUMMARY)))
    finally:
        progress.close()
    if not summary["written"]:
        reasons = ", ".join(f"{n:,}: {reason}" for reason, n in summary["left_out"].items())
        raise UserError(f"None of {plan['records']:,} records could be labelled ({reasons}).")
    return summary


def _models(
    args: argparse.Namespace, flags: Sequence[str]
) -> tuple[dict[str, Any], list[Any], list[str]]:
    """What was chosen and the state of its files, for the plan; the models, not loaded; and the other flags."""
    from experiments.cloc.vesl import captioners, detectors, taggers

    tables = {"captioner": captioners, "tagger": taggers, "detector": detectors}
    chosen: dict[str, Any] = {m: {"kind": getattr(args, m)} for m in MODELS}
    others = []
    for flag in flags:
        model, dot, setting = flag.removeprefix("--").partition(".")
        if model not in MODELS or not dot:
            others.append(flag)
            continue
        name, value = parse_setting(setting, f"--{model}.NAME: it")
        if name in chosen[model]:
            raise UserError(f"The setting --{model}.{name} is given twice.")
        chosen[model][name] = value
    models, files = [], {}
    for model, settings in chosen.items():
        kind = settings["kind"]
        given = {k: v for k, v in settings.items() if k != "kind"}
        maker = registry.lookup(kind, tables[model].KINDS, model)
        models.append(registry.call(maker, given, f"The {model} {kind!r}"))
        if hasattr(models[-1], "fingerprint"):
            files[model] = models[-1].fingerprint()
    return chosen | {"model_files": files}, models, others


def report(summary: dict[str, Any]) -> None:
    """Prints what was found, and what was left out and why."""
    total, counts = summary["plan"]["records"], summary["counts"]
    print(f"{total:,} records, {summary['written']:,} written.")
    for name in ("captions", "phrases", "regions"):
        count = counts.get(name, 0)
        print(f"{count:,} {name}, {count / summary['written']:.2f} a record")
    for name, count in counts.items():
        if name not in ("captions", "phrases", "regions"):
            print(f"{count:,} {name}")
    for field, count in summary["dropped"].items():
        print(f"{count:,} records lost their field {field!r}")
    for reason, count in sorted(summary["left_out"].items(), key=lambda item: -item[1]):
        print(f"{count:,} left out: {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
