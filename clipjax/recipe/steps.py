"""The steps of a recipe, and helpers for arms and seeds; see `clipjax.recipe`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clipjax.errors import UserError
from clipjax.registry import nearest

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


def further_seeds(arg: str | None) -> tuple[int, ...]:
    """Seeds of the arms beside the main pair: one, or all three with `--recipe=FILE:full`.

    Raises:
      UserError: another argument.
    """
    if arg not in (None, "full"):
        raise UserError(
            f"This recipe has no variant {arg!r}; leave it out, or write 'full' for three seeds of every arm."
        )
    return (0, 1, 2) if arg else (0,)


def _tuple(value: str | Sequence[Any]) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
