"""`clipjax recipe`: a method of several runs, or the arms and seeds of a comparison."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "--recipe", required=True, metavar="FILE[:arg]", help="a Python file with get_recipe(arg)"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the recipe's directory")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="steps at a time, which share the cores"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="this step and what it needs, or a pattern such as 'full-*'; may be repeated",
    )
    parser.epilog = "Does what is not yet done; a run that was broken off goes on."


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    del overrides
    from clipjax.recipe import load_recipe
    from clipjax.recipe.running import run

    return run(load_recipe(args.recipe), Path(args.workdir), args.jobs, args.only)
