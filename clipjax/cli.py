"""The command line. It joins the commands of clipjax/commands/, each of which has its own parser."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from absl import logging

from clipjax.errors import SharedError, TryAgainError, UserError
from clipjax.job.huge_pages import restart_with_huge_pages
from clipjax.platform import settle_simulated_devices

# Command -> what it does. Its module, clipjax/commands/NAME.py, is imported when it is the one that is asked for.
COMMANDS = {
    "train": "train a config; goes on from the newest checkpoint of the workdir",
    "eval": "run evaluators on a checkpoint of any format",
    "embed": "embed images and texts",
    "stage": "change a checkpoint's parameters and model: one stage between two runs",
    "recipe": "do the steps of a method of several runs that are not yet done, and print its tables",
    "convert": "a checkpoint of one format as one of another; docs/checkpoints.md lists them",
    "show": "print a config, its parameters and its FLOPs; trains nothing",
    "plan": "compile a config for machines one does not have, and say what it costs there",
    "data": "prepare and look at data sets",
}
# These hold no large arrays, or must set up JAX themselves.
SMALL_PAGES = ("show", "plan", "data", "recipe")
# How settings of what a command is given begin; `--config.` everywhere else.
PREFIXES = {"stage": "--stage."}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (2 for a user's mistake, 75 to try again, 128 + n after signal n)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((a for a in arguments if not a.startswith("-")), None)
    prefix = PREFIXES.get(name, "--config.")
    overrides = [a.removeprefix(prefix) for a in arguments if a.startswith(prefix)]
    arguments = [a for a in arguments if not a.startswith(prefix)]
    settle_simulated_devices()
    if argv is None and name in COMMANDS and name not in SMALL_PAGES:
        restart_with_huge_pages()
    parser = argparse.ArgumentParser(
        "clipjax", description="Pretrain language-image encoders in JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        command: commands.add_parser(command, help=text) for command, text in COMMANDS.items()
    }
    module = None
    if name in COMMANDS:
        module = importlib.import_module(f"clipjax.commands.{name}")
        module.arguments(parsers[name])
    args = parser.parse_args(arguments)
    if overrides and not hasattr(args, prefix.strip("-.")):
        parser.error(f"{args.command} takes no --config.* overrides")
    # Orbax tells on standard error how long it waited and the like; its errors still show.
    logging.set_verbosity(logging.ERROR)
    try:
        return module.run(args, overrides)
    except UserError as error:
        if not isinstance(error, SharedError) or _speaks():
            print(f"clipjax {args.command}: {error}", file=sys.stderr)
        return 75 if isinstance(error, TryAgainError) else 2


def _speaks() -> bool:
    """Whether this process prints what all processes of its job have to say."""
    from clipjax.job.distributed import is_primary

    return is_primary()


if __name__ == "__main__":
    sys.exit(main())
