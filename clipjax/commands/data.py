"""`clipjax data`: prepare and look at data sets. What each verb does stands in clipjax/data/commands/."""

import argparse
from collections.abc import Sequence


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verbs and what each of them takes."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
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
    index.set_defaults(verb_run=_index)

    inspect = verbs.add_parser(
        "inspect", help="numbers of a data set, and a page of its images with their regions"
    )
    inspect.add_argument(
        "--limit",
        type=int,
        default=1000,
        metavar="N",
        help="records that are looked at, of each source",
    )
    inspect.add_argument("--output", metavar="FILE.html", help="write the page")
    inspect.set_defaults(verb_run=_inspect)

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
    convert.set_defaults(verb_run=_convert)

    bench = verbs.add_parser("bench", help="time the stages of reading, and say where the wall is")
    bench.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for each line of the table"
    )
    bench.add_argument("--json", metavar="FILE", help="write everything that is printed")
    bench.set_defaults(verb_run=_bench)

    verify = verbs.add_parser("verify", help="read and decode every record, and list bad ones")
    verify.add_argument("--output", metavar="FILE.jsonl", help="one JSON line a bad record")
    verify.add_argument(
        "--hashes",
        metavar="FILE",
        help="write a hash of each image, or compare them if it is there",
    )
    verify.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    verify.add_argument("--limit", type=int, metavar="N", help="only the first records of a source")
    verify.set_defaults(verb_run=_verify)

    for verb in (inspect, convert, bench, verify):
        _add_source(verb)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the verb."""
    return args.verb_run(args, overrides)


def _add_source(verb: argparse.ArgumentParser) -> None:
    """How a user names the data; see clipjax/data/commands/named.py."""
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
    verb.epilog = (
        "Fields of a config can be overridden: --config.data.features.image.augment.flip=0.5"
    )


def _index(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    del overrides
    from clipjax.data.commands.index import index

    return index(args.tars, args.output, args.workers, args.again, args.list)


def _named(args: argparse.Namespace, overrides: Sequence[str]):
    from clipjax.data.commands.named import named

    return named(args.data, args.set, args.config, args.source, overrides)


def _inspect(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.data.commands.inspection import inspect

    return inspect(_named(args, overrides), args.limit, args.output)


def _convert(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.data.commands.convert import convert

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
    from clipjax.data.commands.bench import bench

    return bench(_named(args, overrides), args.seconds, args.json)


def _verify(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.data.commands.verify import verify

    return verify(_named(args, overrides), args.output, args.hashes, args.workers, args.limit)
