"""Jobs over whole corpora as Apache Beam pipelines: new shards, filters, duplicates (docs/beam.md).

python -m tools.beam.corpus filter 'web/*.tar' --output=small --filter=min_side=200 --filter="values={'language': 'en'}"
python -m tools.beam.corpus dedup 'web/*.tar' --output=twice --distance=4
python -m tools.beam.corpus reshard 'web/*.tar' --output=clean --remove=small --remove=twice --shuffle=0 --shards=512

filter and dedup write lists of records that are to be left out, and why; reshard writes the others. SOURCE is named as
for `clipjax data convert`. All flags that are not listed here are Beam's: --runner (DirectRunner if there is none),
--direct_num_workers=2 --direct_running_mode=multi_processing, ... Write them with '='.
"""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from clipjax.data.commands.named import Named, named
from clipjax.errors import UserError


def make_parser() -> argparse.ArgumentParser:
    """The flags of all jobs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    jobs = parser.add_subparsers(dest="job", required=True)
    common = source_flags()
    job = jobs.add_parser(
        "filter", parents=[common], help="which records conditions turn down", allow_abbrev=False
    )
    job.add_argument(
        "--filter", action="append", default=[], metavar="NAME=VALUE", help="see docs/data.md"
    )
    job = jobs.add_parser(
        "dedup", parents=[common], help="which images are there twice", allow_abbrev=False
    )
    job.add_argument("--distance", type=int, default=4, help="bits of 64 that may differ, 0 to 10")
    job = jobs.add_parser(
        "reshard",
        parents=[common, shard_flags()],
        help="a data set in another layout",
        allow_abbrev=False,
    )
    job.add_argument("--to", default="array_record", help="array_record, tars or parquet")
    job.add_argument("--shuffle", type=int, metavar="SEED", help="a random order")
    return parser


def source_flags() -> argparse.ArgumentParser:
    """The flags that say what is read and where the output goes, as a parent of other parsers."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="path patterns, or kinds of sources"
    )
    common.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="setting of the one SOURCE"
    )
    common.add_argument(
        "--config", metavar="FILE[:arg]", help="of a run, instead of SOURCE: its sources"
    )
    common.add_argument("--source", metavar="NAME", help="the only one of the config's sources")
    common.add_argument("--output", required=True, help="a new folder, local or remote")
    return common


def shard_flags() -> argparse.ArgumentParser:
    """The flags of jobs that write shards, as a parent of other parsers."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--shards", type=int, help="their number")
    common.add_argument("--shard-size", help="such as 256MB, instead")
    common.add_argument(
        "--filter", action="append", default=[], metavar="NAME=VALUE", help="leave out records"
    )
    common.add_argument(
        "--remove", action="append", default=[], metavar="DIR", help="an output of filter or dedup"
    )
    common.add_argument(
        "--drop", action="append", default=[], metavar="FIELD", help="leave out a field"
    )
    return common


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with status 2 on a user's mistake."""
    parser = make_parser()
    args, flags = parser.parse_known_args(arguments)
    try:
        report(start(args, flags))
    except UserError as error:
        parser.exit(2, f"{error}\n")


def start(args: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    """Runs a job; returns its summary.

    Raises:
      UserError: see the jobs.
    """
    modules = ("common", "dedup", "filtering", "phash", "reshard")
    overrides, flags = begin("beam", flags, *(f"tools.beam.{name}" for name in modules))
    from tools.beam import common, dedup, filtering, reshard, running

    job = common.open_job(named_data(args, overrides), args.output)

    def build(pipeline: Any) -> None:
        if args.job == "filter":
            filtering.build(pipeline, job, args.filter)
        elif args.job == "dedup":
            dedup.build(pipeline, job, args.distance)
        else:
            reshard.build(
                pipeline,
                job,
                args.to,
                args.shards,
                args.shard_size,
                args.shuffle,
                args.filter,
                args.remove,
                args.drop,
            )

    running.run(build, flags)
    return json.loads(common.read_all(common.join(job.output, common.SUMMARY)))


def begin(extra: str, flags: Sequence[str], *modules: str) -> tuple[list[str], list[str]]:
    """Imports the job's modules, whose code will travel to the workers, and looks at the flags that are not the job's.

    Args:
      extra: of clipjax, which brings Beam.
      flags: overrides of the config, and Beam's.
      modules: their full names; running.py's code stays here.

    Returns:
      (overrides, Beam's flags).

    Raises:
      UserError: there is no Beam, or a flag that it does not have.
    """
    logging.disable(logging.WARNING)  # Beam warns of Google's packages, which are not needed
    try:
        for name in modules:
            importlib.import_module(name)
        from tools.beam import running
    except ImportError as error:
        raise UserError(f"This job needs Apache Beam: pip install 'clipjax[{extra}]'.") from error
    finally:
        logging.disable(logging.NOTSET)
    running.travels(*modules)
    overrides = [f.removeprefix("--config.") for f in flags if f.startswith("--config.")]
    flags = [f for f in flags if not f.startswith("--config.")]
    running.check_flags(flags)
    return overrides, flags


def named_data(args: argparse.Namespace, overrides: Sequence[str]) -> list[Named]:
    """The data that `source_flags` and `--config.` overrides name."""
    if len(args.sources) > 1:
        if args.set:
            raise UserError(
                "--set is for one SOURCE; write a config for several, and name it with --config."
            )
        return [named(pattern, (), args.config, args.source, overrides) for pattern in args.sources]
    pattern = args.sources[0] if args.sources else None
    return [named(pattern, args.set, args.config, args.source, overrides)]


def report(summary: dict[str, Any]) -> None:
    """Prints what was left out and why."""
    reshard = summary["job"] == "reshard"
    total = summary["plan"]["records"] if reshard else summary["records"]
    kept, gone = (summary["written"], "left_out") if reshard else (summary["kept"], "removed")
    print(f"{total:,} records, {kept:,} {'written' if reshard else 'kept'}.")
    for reason, count in sorted(summary[gone].items(), key=lambda item: -item[1]):
        print(f"{count:,} {'left out' if reshard else 'removed'}: {reason}")
    for name, count in summary.get("counts", {}).items():
        print(f"{name}: {count:,}")


if __name__ == "__main__":
    main(sys.argv[1:])
