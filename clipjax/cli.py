"""The command line: `clipjax train | eval | embed | show`. Arguments are parsed here; the work is done elsewhere."""

import argparse
import sys
from collections.abc import Sequence

from absl import logging

from clipjax.errors import UserError
from clipjax.huge_pages import restart_with_huge_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (2 for a user's mistake, 128 + n after signal n)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    parser = _parser()
    args = parser.parse_args([a for a in arguments if not a.startswith("--config.")])
    if overrides and not hasattr(args, "config"):
        parser.error(f"{args.command} takes no --config.* overrides")
    if argv is None and args.command != "show":
        restart_with_huge_pages()
    # Orbax tells on standard error how long it waited and the like; its errors still show.
    logging.set_verbosity(logging.ERROR)
    try:
        return args.run(args, overrides)
    except UserError as error:
        print(f"clipjax {args.command}: {error}", file=sys.stderr)
        return 2


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
        "--checkpoint", required=True, metavar="PATH", help="a workdir or one checkpoint"
    )
    embed.add_argument("--images", metavar="GLOB", help="picture files, such as 'photos/**/*.jpg'")
    embed.add_argument("--texts", metavar="FILE", help="one text a line")
    embed.add_argument("--output", required=True, metavar="FILE.npz", help="where the arrays go")
    embed.add_argument(
        "--skip-bad", action="store_true", help="leave out, and list, pictures that cannot be read"
    )
    embed.set_defaults(run=_embed)

    show = commands.add_parser(
        "show", help="print a config, its parameters and its FLOPs; trains nothing"
    )
    show.add_argument(
        "--config", required=True, metavar="FILE[:arg]", help="a Python file with get_config(arg)"
    )
    show.set_defaults(run=_show)

    for command in (train, show):
        command.epilog = "Any field can be overridden: --config.model.image.depth=6"
    return parser


def _load_config(args: argparse.Namespace, overrides: Sequence[str]):
    from clipjax.config import load_config
    from clipjax.defaults import base_config

    return load_config(args.config, base_config(), overrides)


def _train(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.commands import show_run
    from clipjax.train import Stopped, train

    try:
        train(_load_config(args, overrides), args.workdir)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    show_run(args.workdir)
    return 0


def _eval(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    del overrides
    from clipjax.commands import evaluate

    return evaluate(args.checkpoint, args.suite, args.output)


def _embed(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    del overrides
    from clipjax.commands import embed

    return embed(args.checkpoint, args.images, args.texts, args.output, skip_bad=args.skip_bad)


def _show(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from clipjax.show import show

    return show(_load_config(args, overrides))


if __name__ == "__main__":
    sys.exit(main())
