"""Recipes: several runs, and what is between them, as one ordered list of named steps.

A recipe is a Python file with `get_recipe(arg=None)`, which returns a list of steps:

    from clipjax.recipe import arms, call, evaluate, folder, rows, stage, table, train

    ARMS, SEEDS = ("baseline", "full"), (0, 1, 2)

    def get_recipe(arg=None):
        return [
            train("start", "configs/start.py"),
            stage("adapted", "experiments.mine.stages:adapt", folder("start"), rank=4),
            *arms("configs/small.py", ARMS, SEEDS, {"init": {"": folder("adapted")}}),
            evaluate("transfer", folder("full-0"), "configs/transfer.py"),
            call("neighbours", "experiments.mine.analysis:neighbours", checkpoint=folder("full-0")),
            table(
                "results",
                rows(ARMS, SEEDS),
                {"seen R@5": "seen/text_to_image/R@5", "category": "category/acc@1"},
                baseline="baseline",
                compare=[("full", "baseline", "seen R@5")],
            ),
        ]

    clipjax recipe --recipe=experiments/mine/recipe.py --workdir=runs/mine --jobs=2

Every step has a folder of its own, `WORKDIR/NAME`; what it prints is in `WORKDIR/logs/NAME.log`. `{NAME}` in any string
of a step (`folder(NAME)` writes it) means the folder of step NAME, which is then done first. That folder can be given
wherever a checkpoint is wanted: of a train step it is the run's workdir, of a stage the checkpoint.

A finished step leaves a mark, `WORKDIR/done/NAME.json`, and is never done again; a train step that was broken off goes
on from its newest checkpoint, another one starts anew in an empty folder. A finished step whose definition has changed
since (of a train step the whole config counts) is refused by name. When a step fails, those that need it are left out,
all others are done, and the exit status is 1. See `clipjax.recipe.running` for how steps run and
`clipjax.recipe.tables` for the tables.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipjax.config import call_file, existing
from clipjax.errors import UserError
from clipjax.imports import import_root
from clipjax.recipe.steps import (
    Column,
    Step,
    arms,
    call,
    embed,
    evaluate,
    folder,
    further_seeds,
    rows,
    stage,
    table,
    train,
)
from clipjax.registry import nearest

__all__ = [
    "Column",
    "Recipe",
    "Step",
    "arms",
    "call",
    "embed",
    "evaluate",
    "folder",
    "further_seeds",
    "load_recipe",
    "rows",
    "stage",
    "table",
    "train",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REFERENCE = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9._-]*)\}")
RESERVED = ("done", "logs")


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read and checked.

    Attributes:
      file: where it stands; relative configs lie beside it.
      steps: name -> step, in the recipe's order.
      needs: name -> names of the steps that must be done before it.
      root: of its project, from which import paths are meant.
    """

    file: Path
    steps: Mapping[str, Step]
    needs: Mapping[str, tuple[str, ...]]
    root: Path

    def config(self, named: str) -> str:
        """A config's "FILE[:arg]" with FILE as seen from the current directory."""
        path, colon, arg = named.partition(":")
        return f"{self.file.parent / path}{colon}{arg}"


def load_recipe(file_and_arg: str) -> Recipe:
    """The recipe of FILE[:arg].

    Raises:
      UserError: no such file, a file without `get_recipe`, or steps that cannot be a recipe: of one name, needing a
        step that there is not, or each other.
    """
    path, _, arg = file_and_arg.partition(":")
    file = existing(path, "recipe")
    steps = call_file(file, arg, "get_recipe", "recipe")
    if not isinstance(steps, list | tuple) or not all(isinstance(s, Step) for s in steps):
        raise UserError(
            f"get_recipe of {path!r} must return a list of steps, made by the functions of clipjax.recipe."
        )
    named: dict[str, Step] = {}
    for step in steps:
        if not _NAME.fullmatch(step.name) or step.name in RESERVED:
            raise UserError(
                f"A step of {path!r} cannot be named {step.name!r}; use letters, digits, '.', '_' and '-', and not "
                f"{' or '.join(map(repr, RESERVED))}."
            )
        if step.name in named:
            raise UserError(f"Two steps of {path!r} are named {step.name!r}; rename one of them.")
        named[step.name] = step
    for step in steps:
        _check(step, named, path)
    needs = {step.name: _needs(step, named) for step in steps}
    _check_order(needs, path)
    return Recipe(file, named, needs, import_root(file))


def substitute(value: Any, folders: Mapping[str, str]) -> Any:
    """A step's settings with folders in place of `{NAME}`."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda m: folders.get(m[1], m[0]), value)
    if isinstance(value, Mapping):
        return {k: substitute(v, folders) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(substitute(v, folders) for v in value)
    return value


def _check(step: Step, steps: Mapping[str, Step], path: str) -> None:
    where = f"The step {step.name!r} of {path!r}"
    others = [name for name in steps if name != step.name]
    # At the start of a string it can only be a step; further on also a template's field, such as "{c}".
    at_start = [re.match(rf"{_REFERENCE.pattern}(?:/|$)", text) for text in _strings(step.settings)]
    wanted = [*step.after, *(found[1] for found in at_start if found)]
    if step.kind == "table":
        wanted = [n for seeds in step.settings["rows"].values() for seed in seeds for n in seed]
    for name in wanted:
        if name not in others:
            raise UserError(
                f"{where} needs {name!r}, which is no other step{nearest(name, others)}."
            )
    for name, value in step.settings.get("overrides", {}).items():
        try:
            same = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise UserError(
                f"{where} overrides {name!r} with {value!r}, which is not a plain Python value."
            )
    for name, value in (step.settings.get("settings") or {}).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where} has a setting {name!r} that JSON cannot hold: {error}."
            ) from error


def _needs(step: Step, steps: Mapping[str, Step]) -> tuple[str, ...]:
    mentioned = (name for text in _strings(step.settings) for name in _REFERENCE.findall(text))
    return tuple(dict.fromkeys([*step.after, *(name for name in mentioned if name in steps)]))


def _check_order(needs: Mapping[str, Sequence[str]], path: str) -> None:
    """Refuses steps that need each other."""
    left = dict(needs)
    while ready := [name for name, wanted in left.items() if not left.keys() & set(wanted)]:
        for name in ready:
            del left[name]
    if left:
        raise UserError(f"The steps {', '.join(left)} of {path!r} need each other.")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _strings(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _strings(child)
