"""The command line: `clipjax train | eval | embed | convert | show | plan | data`. It only parses arguments."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from clipjax.errors import SharedError, TryAgainError, UserError
from clipjax.huge_pages import restart_with_huge_pages
from clipjax.platform import settle_simulated_devices


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (2 for a user's mistake, 75 to try again, 128 + n after signal n)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    parser = _parser()
    args = parser.parse_args([a for a in arguments if not a.startswith("--config.")])
    if overrides and not hasattr(args, "config"):
        parser.error(f"{args.command} takes no --config.* overrides")
    settle_simulated_devices()
    if argv is None and args.command not in ("show", "plan", "data"):
        restart_with_huge_pages()
    # Orbax tells on standard error how long it waited and the like; its errors still show.
    logging.set_verbosity(logging.ERROR)
    try:
        return args.run(args, overrides)
    except UserError as error:
        if not isinstance(error, SharedError) or _speaks():
            print(f"clipjax {args.command}: {error}", file=sys.stderr)
        return 75 if isinstance(error, TryAgainError) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "clipjax", description="Pretrain language-image encoders in JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train a config; goes on from the newest checkpoint of the workdir"
    )
    train.add_argument(
        "--config", required=True, metavar="FILE[:arg]", help="a Python file with get_config(arg)"
    )
    train.add_argument("--workdir", required=True, metavar="DIR", help="the run's directory")
    train.add_argument(
        "--profile",
        metavar="STEPS",
        help="trace these steps of this start, A or A-B, such as 10-14",
    )
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="run the evaluators of a checkpoint's config")
    evaluate.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="a workdir or one checkpoint"
    )
    evaluate.add_argument("--suite", metavar="NAME", help="only this evaluator")
    evaluate.add_argument(
        "--output", metavar="FILE.jsonl", help="append one JSON line for each evaluator"
    )
    evaluate.set_defaults(run=_eval)

    embed = commands.add_parser("embed", help="embed pictures and texts")
    embed.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a workdir, or a checkpoint of any format",
    )
    embed.add_argument("--images", metavar="GLOB", help="picture files, such as 'photos/**/*.jpg'")
    embed.add_argument("--texts", metavar="FILE", help="one text a line")
    embed.add_argument("--output", required=True, metavar="FILE.npz", help="where the arrays go")
    embed.add_argument(
        "--skip-bad", action="store_true", help="leave out, and list, pictures that cannot be read"
    )
    embed.set_defaults(run=_embed)

    change = commands.add_parser(
        "convert",
        help="a checkpoint of one format as one of another; docs/checkpoints.md lists them",
    )
    change.add_argument(
        "--source",
        required=True,
        metavar="PATH",
        help="a file, a directory, a workdir, hf-hub:NAME",
    )
    change.add_argument("--target", required=True, metavar="DIR", help="where it goes; must be new")
    change.add_argument(
        "--from", dest="form", metavar="FORMAT", help="default: recognised by its content"
    )
    change.add_argument("--to", default="clipjax", metavar="FORMAT", help="default: clipjax")
    change.add_argument(
        "--model", metavar="NAME", help="the architecture, for weights that do not say it"
    )
    change.add_argument(
        "--tokenizer", metavar="FILE", help="for checkpoints that come without a tokenizer"
    )
    change.add_argument(
        "--without",
        default="",
        metavar="PART,...",
        help="leave out parts of the model: regions, image or text",
    )
    change.add_argument("--dtype", metavar="DTYPE", help="of all parameters; default: as they are")
    change.add_argument("--size", type=int, metavar="PX", help="of pictures; resamples positions")
    change.add_argument("--length", type=int, metavar="N", help="of texts; resamples positions")
    change.add_argument(
        "--mesh", metavar="AXIS=N,...", help="write in the pieces that such a mesh reads: fsdp=8"
    )
    change.add_argument(
        "--max-shard-size", metavar="SIZE", help="several files of at most this size, such as 5GB"
    )
    change.set_defaults(run=_change)

    show = commands.add_parser(
        "show", help="print a config, its parameters and its FLOPs; trains nothing"
    )
    show.add_argument(
        "--config", required=True, metavar="FILE[:arg]", help="a Python file with get_config(arg)"
    )
    show.set_defaults(run=_show)

    plan = commands.add_parser(
        "plan", help="compile a config for machines one does not have, and say what it costs there"
    )
    plan.add_argument(
        "--config", required=True, metavar="FILE[:arg]", help="a Python file with get_config(arg)"
    )
    plan.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="v5e:16x16, v5p:512, h100:8, cpu:8"
    )
    plan.add_argument(
        "--slices", type=int, default=1, metavar="N", help="so many TPU slices of that shape"
    )
    ways = plan.add_mutually_exclusive_group()
    ways.add_argument(
        "--sweep", action="store_true", help="compare meshes and remat policies, and recommend"
    )
    ways.add_argument(
        "--largest-batch", action="store_true", help="find the largest batch that fits"
    )
    plan.add_argument("--json", metavar="FILE", help="write everything that is printed")
    plan.set_defaults(run=_plan)

    data = commands.add_parser("data", help="prepare and look at data sets")
    verbs = data.add_subparsers(dest="verb", required=True, metavar="VERB")
    index = verbs.add_parser(
        "index", help="index tars, so that their samples can be read at random; list many files"
    )
    index.add_argument(
        "tars", nargs="+", metavar="FILE", help="tars or Parquet files: paths or patterns"
    )
    index.add_argument(
        "--output", metavar="DIR", help="where the indices go; default: beside the tars"
    )
    index.add_argument("--workers", type=int, default=4, metavar="N", help="tars read at once")
    index.add_argument("--again", action="store_true", help="also where an index is there already")
    index.add_argument(
        "--list", metavar="FILE", help="write a list of the files, for sets of many thousands"
    )
    index.set_defaults(run=_index)

    inspect = verbs.add_parser(
        "inspect", help="numbers of a data set, and a page of its pictures with their regions"
    )
    inspect.add_argument(
        "--limit",
        type=int,
        default=1000,
        metavar="N",
        help="records that are looked at, of each source",
    )
    inspect.add_argument("--output", metavar="FILE.html", help="write the page")
    inspect.set_defaults(run=_inspect)

    convert = verbs.add_parser(
        "convert", help="write a data set as ArrayRecords, tars or Parquet, in shards for the job"
    )
    convert.add_argument("--output", required=True, metavar="DIR", help="where the shards go")
    convert.add_argument(
        "--to", default="array_record", metavar="LAYOUT", help="array_record, tars or parquet"
    )
    convert.add_argument("--shard-size", metavar="SIZE", help="such as 256MB (the default) or 1GiB")
    convert.add_argument("--shards", type=int, metavar="N", help="so many shards instead")
    convert.add_argument(
        "--hosts",
        type=int,
        default=1,
        metavar="H",
        help="make the shards a multiple of these readers",
    )
    convert.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only records that pass, such as min_side=200; may be repeated",
    )
    convert.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="FIELD",
        help="leave out a field; may be repeated",
    )
    convert.add_argument("--shuffle", type=int, metavar="SEED", help="write in a random order")
    convert.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    convert.add_argument("--limit", type=int, metavar="N", help="only so many records")
    convert.set_defaults(run=_convert)

    bench = verbs.add_parser("bench", help="time the stages of reading, and say where the wall is")
    bench.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for each line of the table"
    )
    bench.add_argument("--json", metavar="FILE", help="write everything that is printed")
    bench.set_defaults(run=_bench)

    verify = verbs.add_parser("verify", help="read and decode every record, and list bad ones")
    verify.add_argument("--output", metavar="FILE.jsonl", help="one JSON line a bad record")
    verify.add_argument(
        "--hashes",
        metavar="FILE",
        help="write a hash of each picture, or compare them if it is there",
    )
    verify.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    verify.add_argument("--limit", type=int, metavar="N", help="only the first records of a source")
    verify.set_defaults(run=_verify)

    for verb in (inspect, convert, bench, verify):
        _add_source(verb)

    for command in (train, evaluate):
        job = command.add_argument_group(
            "several processes",
            "SLURM, MPI and GKE's TPUs are recognised by themselves; see docs/launch.md.",
        )
        job.add_argument(
            "--coordinator",
            metavar="HOST:PORT",
            help="process 0, the same for all; 'auto' lets JAX find the cluster",
        )
        job.add_argument("--num-processes", type=int, metavar="N", help="processes of the job")
        job.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")

    for command in (train, show, plan):
        command.epilog = "Any field can be overridden: --config.model.image.depth=6"
    return parser


def _add_source(verb: argparse.ArgumentParser) -> None:
    """How a user names the data; see clipjax/data/named.py."""
    verb.add_argument(
        "data",
        nargs="?",
        metavar="SOURCE",
        help="a pattern such as 'shards/*.tar', *.parquet, *.arrayrecord, *.jsonl, or a kind such as drawings",
    )
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of SOURCE, such as text=txt; may be repeated",
    )
    verb.add_argument("--config", metavar="FILE[:arg]", help="the sources of a config instead")
    verb.add_argument("--source", metavar="NAME", help="only this one of the config's sources")
    verb.epilog = "Fields of a config can be overridden: --config.data.regions.count=4"


def _load_config(args: argparse.Namespace, overrides: Sequence[str]):
    from clipjax.config import load_config
    from clipjax.defaults import base_config

    return load_config(args.config, base_config(), overrides)


def _join(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Joins the job of several processes that this one may be part of."""
    from clipjax import distributed

    distributed.start(
        args.coordinator,
        args.num_processes,
        args.process_id,
        start_timeout=settings["start_timeout"],
        heartbeat_timeout=settings["heartbeat_timeout"],
    )


def _speaks() -> bool:
    """Whether this process prints what all processes of its job have to say."""
    from clipjax.distributed import first

    return first()


def _train(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.commands import show_run
    from clipjax.signals import Stopped
    from clipjax.train import train
    from clipjax.watchdog import guard

    config = _load_config(args, overrides)
    _join(args, config.run)
    try:
        with guard(args.workdir):
            train(config, args.workdir, args.profile)
    except Stopped as stopped:
        if _speaks():
            print(stopped, file=sys.stderr)
        return stopped.status
    if _speaks():
        show_run(args.workdir)
    return 0


def _eval(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    del overrides
    from clipjax.commands import evaluate
    from clipjax.defaults import base_config
    from clipjax.watchdog import guard

    _join(args, base_config().run)
    with guard(args.checkpoint):
        return evaluate(args.checkpoint, args.suite, args.output)


def _embed(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    del overrides
    from clipjax.commands import embed

    return embed(args.checkpoint, args.images, args.texts, args.output, skip_bad=args.skip_bad)


def _change(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    del overrides
    from clipjax.convert.arguments import byte_count, mesh_sizes

    mesh = mesh_sizes(args.mesh)
    from clipjax.convert.command import convert
    from clipjax.convert.formats import Options
    from clipjax.convert.tokenizer_option import section

    return convert(
        args.source,
        args.target,
        form=args.form,
        to=args.to,
        options=Options(args.model, section(args.tokenizer)),
        left_out=[part.strip() for part in args.without.split(",") if part.strip()],
        dtype=args.dtype,
        size=args.size,
        length=args.length,
        mesh=mesh,
        max_shard_bytes=byte_count(args.max_shard_size),
    )


def _plan(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.plan.topology import prepare

    prepare(args.topology)
    from clipjax.plan.report import run

    return run(
        _load_config(args, overrides),
        args.topology,
        args.slices,
        sweep=args.sweep,
        largest=args.largest_batch,
        output=args.json,
    )


def _index(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    del overrides
    from clipjax.data.index import index

    return index(args.tars, args.output, args.workers, args.again, args.list)


def _named(args: argparse.Namespace, overrides: Sequence[str]):
    from clipjax.data.named import named

    return named(args.data, args.set, args.config, args.source, overrides)


def _inspect(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.data.inspection import inspect

    return inspect(_named(args, overrides), args.limit, args.output)


def _convert(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.data.convert import convert

    return convert(
        _named(args, overrides),
        args.output,
        args.to,
        shard_size=args.shard_size,
        shards=args.shards,
        hosts=args.hosts,
        filters=args.filter,
        shuffle=args.shuffle,
        drop=args.drop,
        workers=args.workers,
        limit=args.limit,
    )


def _bench(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.data.bench import bench

    return bench(_named(args, overrides), args.seconds, args.json)


def _verify(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.data.verify import verify

    return verify(_named(args, overrides), args.output, args.hashes, args.workers, args.limit)


def _show(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.show import show

    return show(_load_config(args, overrides))


if __name__ == "__main__":
    sys.exit(main())
