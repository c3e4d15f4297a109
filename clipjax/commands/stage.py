"""`clipjax stage`: parameter surgery between two runs."""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "--stage", required=True, metavar="NAME", help="of the library, or package.module:function"
    )
    parser.add_argument(
        "--source", required=True, metavar="PATH", help="a workdir, or a checkpoint of any format"
    )
    parser.add_argument("--target", required=True, metavar="DIR", help="where it goes; must be new")
    parser.add_argument(
        "--import-root",
        metavar="DIR",
        help="where import paths start; default: the project of the current directory",
    )
    parser.epilog = "Settings of the stage: --stage.rank=4 --stage.parts=('image',)"


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    from clipjax.imports import import_root, make_importable
    from clipjax.stages import apply

    root = args.import_root or import_root(Path.cwd() / "stages.py")
    make_importable(Path(root).absolute())
    apply(args.stage, args.source, args.target, settings_of(overrides))
    print(f"{args.target}: {args.stage} of {args.source}")
    return 0


def settings_of(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` each, as settings; a value is Python, or else a string.

    Raises:
      UserError: no value, or a setting that is given twice.
    """
    from clipjax.errors import UserError

    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"The setting --stage.{text} has no value; write --stage.{name}=VALUE.")
        if name in settings:
            raise UserError(f"The setting --stage.{name} is given twice.")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    return settings
