"""`clipjax train`: train a config, or go on where the workdir's newest checkpoint ends."""

import argparse
import sys
from collections.abc import Sequence

from clipjax.commands.arguments import add_config, add_job, join, read_config


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's directory")
    parser.add_argument(
        "--profile",
        metavar="STEPS",
        help="trace these steps of this start, A or A-B, such as 10-14",
    )
    add_job(parser)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    from clipjax.commands.eval import show_run
    from clipjax.job.distributed import is_primary
    from clipjax.job.signals import Stopped
    from clipjax.job.watchdog import guard
    from clipjax.train import train

    config = read_config(args, overrides)
    join(args, config.run)
    try:
        with guard(args.workdir):
            train(config, args.workdir, args.profile)
    except Stopped as stopped:
        if is_primary():
            print(stopped, file=sys.stderr)
        return stopped.status
    if is_primary():
        show_run(args.workdir)
    return 0
