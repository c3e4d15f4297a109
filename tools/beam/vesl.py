"""VESL, CLOC's labelling of regions, over a data set as an Apache Beam pipeline (docs/vesl.md).

python tools/beam/vesl.py 'web/*.tar' --output=regions --captioner.fields='("caption", "text")' --shard-size=256MB
python tools/beam/vesl.py 'scenes/*.arrayrecord' --output=regions --detector=truth --detector.miss=0.1 --shards=8

SOURCE is named as for `clipjax data convert`. --captioner, --tagger and --detector name a kind or an import path,
'package.module:Name', and --captioner.NAME=VALUE its settings. A job that was stopped goes on when it is started again
with the same arguments. All flags that are not listed here are Beam's, see docs/beam.md. Write them with '='.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corpus

from clipjax import registry
from clipjax.data.named import parse_setting
from clipjax.errors import UserError

# The package `experiments` lies beside `tools`, and is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

MODELS = ("captioner", "tagger", "detector")


def make_parser() -> argparse.ArgumentParser:
    """The job's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[corpus.source_flags()],
    )
    parser.add_argument("--captioner", default="field", help="field, file, transformers")
    parser.add_argument("--tagger", default="textblob", help="textblob, nltk, spacy")
    parser.add_argument("--detector", default="owlv2", help="owlv2, or truth for scenes")
    parser.add_argument("--threshold", type=float, default=0.1, help="of a box's score")
    parser.add_argument("--phrases", type=int, default=20, help="of a record that are kept")
    parser.add_argument("--batch", type=int, default=16, help="records that the models see at once")
    parser.add_argument("--shards", type=int, help="their number")
    parser.add_argument("--shard-size", help="such as 256MB, instead")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="NAME=VALUE", help="leave out records"
    )
    parser.add_argument(
        "--remove", action="append", default=[], metavar="DIR", help="an output of filter or dedup"
    )
    parser.add_argument(
        "--drop", action="append", default=[], metavar="FIELD", help="leave out a field"
    )
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
    logging.disable(logging.WARNING)  # Beam warns of Google's packages, which are not needed
    try:
        import common
        import running
    except ImportError as error:
        raise UserError("VESL needs Apache Beam: pip install 'clipjax[vesl]'.") from error
    finally:
        logging.disable(logging.NOTSET)
    import filtering
    import label_regions
    import reshard
    import resume

    chosen, models, flags = _models(args, flags)
    # Workers have clipjax, but neither this folder nor the experiment.
    parts = (m for m in list(sys.modules) if m.startswith("experiments.cloc.vesl."))
    jobs = (m.__name__ for m in (common, filtering, label_regions, reshard, resume))
    running.travels(*parts, *jobs)
    overrides = [f.removeprefix("--config.") for f in flags if f.startswith("--config.")]
    flags = [f for f in flags if not f.startswith("--config.")]
    running.check_flags(flags)
    entries, lengths = common.open_sources(corpus.named_data(args, overrides))
    plan = label_regions.make_plan(
        entries,
        lengths,
        chosen,
        args.threshold,
        args.phrases,
        args.batch,
        args.shards,
        args.shard_size,
        args.filter,
        args.remove,
        args.drop,
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
) -> tuple[dict[str, dict[str, Any]], list[Any], list[str]]:
    """What was chosen, for the plan; the models, not loaded; and the other flags."""
    from experiments.cloc.vesl import captioners, detectors, taggers

    tables = {"captioner": captioners, "tagger": taggers, "detector": detectors}
    chosen: dict[str, dict[str, Any]] = {m: {"kind": getattr(args, m)} for m in MODELS}
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
    models = []
    for model, settings in chosen.items():
        kind = settings["kind"]
        given = {k: v for k, v in settings.items() if k != "kind"}
        maker = registry.lookup(kind, tables[model].KINDS, model)
        models.append(registry.call(maker, given, f"The {model} {kind!r}"))
    return chosen, models, others


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
