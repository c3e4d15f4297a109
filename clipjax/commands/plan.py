"""`clipjax plan`: compile a config for machines one does not have, and say what it costs there."""

import argparse
from collections.abc import Sequence

from clipjax.commands.arguments import add_config, read_config


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_config(parser)
    parser.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="v5e:16x16, v5p:512, h100:8, cpu:8"
    )
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N", help="so many TPU slices of that shape"
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--sweep", action="store_true", help="compare meshes and remat policies, and recommend"
    )
    ways.add_argument(
        "--largest-batch", action="store_true", help="find the largest batch that fits"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that is printed")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    from clipjax.plan.topology import prepare

    prepare(args.topology)  # before JAX starts
    from clipjax.plan.report import run

    return run(
        read_config(args, overrides),
        args.topology,
        args.slices,
        sweep=args.sweep,
        largest=args.largest_batch,
        output=args.json,
    )
