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
from typing import Any, NamedTuple

from clipjax.config import call_file, existing
from clipjax.errors import UserError
from clipjax.imports import import_root
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
    "load_recipe",
    "rows",
    "stage",
    "table",
    "train",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REFERENCE = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9._-]*)\}")
RESERVED = ("done", "logs")

# A row's seeds: each a step, or several steps whose results belong together.
Rows = Mapping[str, str | Sequence[str | Sequence[str]]]


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      metric: "EVALUATOR/METRIC" of train and evaluate steps, "METRIC" of call steps; of several the first that a step
        has, where arms have evaluators of other names.
      lower_is_better: turns the comparisons of this column around.
      unit: None: as the evaluator says, or "%" where all values are in [0, 1]; "": numbers as they are.
      digits: after the point; None: 1 of per cent, else 2.
    """

    metric: str | tuple[str, ...]
    lower_is_better: bool = False
    unit: str | None = None
    digits: int | None = None


@dataclass(frozen=True)
class Step:
    """One step; made by the functions below.

    Attributes:
      name: of the step and its folder.
      kind: "train", "stage", "evaluate", "embed", "call" or "table".
      settings: what the function below was given.
      after: names of steps that must be done first, beside those in `{}`.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    after: tuple[str, ...] = ()


def folder(name: str) -> str:
    """`"{NAME}"`, which means the folder of step NAME: `folder(f"start-{seed}") + "/embeddings.npz"`."""
    return f"{{{name}}}"


def train(
    name: str,
    config: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    after: Sequence[str] = (),
) -> Step:
    """`clipjax train`, in a process of its own; its folder is the run's workdir.

    Args:
      name: of the step.
      config: "FILE[:arg]"; a relative FILE lies in the recipe's folder.
      overrides: field -> value, such as `{"seed": 1, "optim.lr": 1e-3, "init": {"": "{start-1}"}}`.
      after: steps that must be done first, beside those in `{}`.
    """
    return Step(
        name, "train", {"config": config, "overrides": dict(overrides or {})}, _tuple(after)
    )


def stage(
    name: str, kind: str, source: str, /, *, after: Sequence[str] = (), **settings: Any
) -> Step:
    """`clipjax stage`: parameter surgery; its folder is the checkpoint that it makes.

    Args:
      name: of the step.
      kind: a key of `clipjax.stages.STAGES`, or an import path.
      source: a checkpoint of any format: "{start-0}", "weights/ViT-B-32.pt".
      after: steps that must be done first, beside those in `{}`.
      **settings: of the stage.
    """
    given = {"stage": kind, "source": source, "settings": settings}
    return Step(name, "stage", given, _tuple(after))


def evaluate(
    name: str,
    checkpoint: str,
    config: str | None = None,
    *,
    suite: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    after: Sequence[str] = (),
) -> Step:
    """`clipjax eval` of a checkpoint of any format.

    Args:
      name: of the step.
      checkpoint: "{full-0}", "weights/ViT-B-32.pt".
      config: "FILE[:arg]" whose `evals` are run; None: the checkpoint's own.
      suite: only this evaluator.
      overrides: fields under `evals`: `{"evals.images.chunk": 64}`.
      after: steps that must be done first, beside those in `{}`.
    """
    given = {
        "checkpoint": checkpoint,
        "config": config,
        "suite": suite,
        "overrides": dict(overrides or {}),
    }
    return Step(name, "evaluate", given, _tuple(after))


def embed(
    name: str,
    checkpoint: str,
    *,
    images: str | None = None,
    texts: str | None = None,
    after: Sequence[str] = (),
) -> Step:
    """`clipjax embed`, into `{NAME}/embeddings.npz`.

    Args:
      name: of the step.
      checkpoint: "{full-0}".
      images: pattern of image files.
      texts: file with one text a line.
      after: steps that must be done first, beside those in `{}`.
    """
    given = {"checkpoint": checkpoint, "images": images, "texts": texts}
    return Step(name, "embed", given, _tuple(after))


def call(name: str, function: str, /, *, after: Sequence[str] = (), **settings: Any) -> Step:
    """Any Python function, in a process of its own: clustering, mining, an analysis.

        def neighbours(checkpoint, count=5, *, folder):
            model = clipjax.load(checkpoint)
            np.savez(folder / "neighbours.npz", ...)
            return {"purity": 0.71, "mean_rank": 3.2, "protocol": {"units": {"mean_rank": "places"}}}

    It returns None or a dict that JSON can hold, which is written to `{NAME}/results.json`. Its numbers, also those of
    dicts in it ("a/b"), can be columns of a table; "protocol" may have `chance` and `units` of them, as an evaluator's.

    Args:
      name: of the step.
      function: "package.module:function", under the root of the recipe's project. If it takes `folder`, it gets the
        step's folder as a `Path`.
      after: steps that must be done first, beside those in `{}`.
      **settings: given to the function; what JSON can hold, tuples become lists.
    """
    return Step(name, "call", {"function": function, "settings": settings}, _tuple(after))


def table(
    name: str,
    rows: Rows,
    columns: Mapping[str, str | Column],
    *,
    baseline: str | None = None,
    compare: Sequence[tuple[str, str, str]] = (),
) -> Step:
    """A table of results as Markdown and JSON: mean ± standard deviation over seeds; see `clipjax.recipe.tables`.

    It is made anew in each start, of those steps that are finished, and printed.

    Args:
      name: of the step; the files are `{NAME}/table.md` and `{NAME}/table.json`.
      rows: title -> its seeds, each the name of a step, or of several whose results belong together:
        `{"full": ["full-0", ("full-1", "transfer-1")]}`.
      columns: title -> metric, such as "seen/text_to_image/R@5", or a `Column`.
      baseline: title of the row whose samples/s are 1 in the column "speed"; None: no such column.
      compare: (row, row, column) each: whether the first beats the second, see `clipjax.recipe.tables.beats`.
    """
    given = {
        "rows": {title: [_tuple(seed) for seed in _tuple(seeds)] for title, seeds in rows.items()},
        "columns": {t: c if isinstance(c, Column) else Column(c) for t, c in columns.items()},
        "baseline": baseline,
        "compare": [tuple(c) for c in compare],
    }
    for a, b, column in given["compare"]:
        for what, title, there in (("row", a, rows), ("row", b, rows), ("column", column, columns)):
            if title not in there:
                raise UserError(
                    f"The table {name!r} compares the {what} {title!r}, which it has not{nearest(title, there)}."
                )
    if baseline is not None and baseline not in rows:
        raise UserError(f"The table {name!r} has no row {baseline!r}{nearest(baseline, rows)}.")
    return Step(name, "table", given)


def arms(
    config: str,
    arms: Sequence[str] | Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Mapping[str, Any] | None = None,
    *,
    after: Sequence[str] = (),
) -> list[Step]:
    """A train step `ARM-SEED` for every arm and seed, seed by seed.

    Args:
      config: "FILE" with the arms' names as its argument, or "FILE[:arg]" where `arms` says what differs.
      arms: names, `("clip", "full")`: then the config is FILE:ARM; or name -> overrides, such as
        `{"g0": {"losses.gated.g": 0.0}}`.
      seeds: values of the field `seed`.
      overrides: of all arms.
      after: as for `train`.
    """
    of_arm = arms if isinstance(arms, Mapping) else {arm: {} for arm in arms}
    return [
        train(
            f"{arm}-{seed}",
            config if isinstance(arms, Mapping) else f"{config}:{arm}",
            {**(overrides or {}), **of_arm[arm], "seed": seed},
            after=after,
        )
        for seed in seeds
        for arm in of_arm
    ]


def rows(
    arms: Sequence[str] | Mapping[str, Any], seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, list[str]]:
    """Rows of a table for what `arms` makes: `{"full": ["full-0", "full-1", "full-2"], ...}`."""
    return {arm: [f"{arm}-{seed}" for seed in seeds] for arm in arms}


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


def _tuple(value: str | Sequence[Any]) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
