"""Tables of results over arms and seeds, and which arm beats which.

Each cell is the mean over a row's seeds ± their standard deviation (n - 1). "A beats B" is said where the difference of
the means exceeds the sum of the two standard errors (standard deviation / square root of n), else "no difference"; of
one seed there is no standard error, so nothing is said.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipjax.log.writers import replace_file
from clipjax.recipe import Column, Step
from clipjax.recipe.results import Results, merge, read


class Verdict(NamedTuple):
    """What a comparison found.

    Attributes:
      difference: mean of A - mean of B; above 0 also where lower is better if A is larger.
      error: sum of the two standard errors; NaN for a single seed.
      winner: "A", "B", "" where there is no difference, None where it cannot be said.
    """

    difference: float
    error: float
    winner: str | None

    def sentence(self, a: str, b: str) -> str:
        """Such as "a beats b", "no difference between a and b", or that it cannot be said."""
        if self.winner is None:
            return f"{a} against {b}: needs two seeds of each"
        if not self.winner:
            return f"no difference between {a} and {b}"
        return f"{a} beats {b}" if self.winner == "A" else f"{b} beats {a}"


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) / sqrt(n); NaN for fewer than two values."""
    return deviation(values) / math.sqrt(len(values))


def deviation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1); NaN for fewer than two values, or where one is NaN."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return statistics.stdev(map(float, values))


def beats(a: Sequence[float], b: Sequence[float], *, lower_is_better: bool = False) -> Verdict:
    """Whether the values of A (one a seed) beat those of B.

        beats([0.51, 0.53, 0.52], [0.44, 0.47, 0.45]).sentence("full", "baseline")   # "full beats baseline"

    Args:
      a, b: at least one finite number each; without two of each there is no verdict.
      lower_is_better: as of a distance.

    Returns:
      The verdict: a winner where |mean(a) - mean(b)| > standard_error(a) + standard_error(b).

    Raises:
      ValueError: no values.
    """
    difference = statistics.fmean(a) - statistics.fmean(b)
    error = standard_error(a) + standard_error(b)
    if not math.isfinite(difference) or math.isnan(error):
        return Verdict(difference, error, None)
    if abs(difference) <= error:
        return Verdict(difference, error, "")
    return Verdict(difference, error, "A" if (difference > 0) != lower_is_better else "B")


def write(step: Step, workdir: Path, finished: Sequence[str]) -> str:
    """Writes `table.json` and `table.md` of a table step into its folder; returns the Markdown.

    Args:
      step: of kind "table".
      workdir: of the recipe.
      finished: names of the steps whose results count.
    """
    settings = step.settings
    seeds = settings["rows"]
    found: dict[str, list[Results]] = {}
    missing: list[str] = []
    for title, row in seeds.items():
        whole = [seed for seed in row if all(name in finished for name in seed)]
        missing += [name for seed in row for name in seed if name not in finished]
        found[title] = [merge([read(workdir / name) for name in seed]) for seed in whole]
    data = collect(found, settings["columns"], settings["baseline"], settings["compare"])
    data["missing"] = list(dict.fromkeys(missing))
    text = markdown(data)
    folder = workdir / step.name
    plain = json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(folder / "table.json", plain + "\n")
    replace_file(folder / "table.md", text)
    return text


def collect(
    rows: Mapping[str, Sequence[Results]],
    columns: Mapping[str, Column],
    baseline: str | None = None,
    compare: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """All that a table says, as plain data.

    Args:
      rows: title -> results of each of its seeds that is finished.
      columns: title -> what stands in it.
      baseline: row whose samples/s are 1.
      compare: (row, row, column).

    Returns:
      `columns` (title -> metric, unit, chance), `rows` (title -> seeds, speed, and by column values, mean, sd) and
      `verdicts`.
    """
    data: dict[str, Any] = {"columns": {}, "rows": {}, "verdicts": []}
    for title, column in columns.items():
        everything = [r for results in rows.values() for r in results]
        data["columns"][title] = {
            **column._asdict(),
            "unit": _unit(column, everything),
            "chance": _mean(_found(column, [r.chance for r in everything])),
        }
    speeds = {title: _mean([r.speed for r in some if r.speed]) for title, some in rows.items()}
    base = speeds.get(baseline) if baseline is not None else None
    for title, results in rows.items():
        cells = {}
        for name, column in columns.items():
            values = _found(column, [r.values for r in results])
            sd = deviation(values) if len(values) > 1 else None
            cells[name] = {"values": values, "mean": _mean(values), "sd": sd}
        speed = speeds[title] / base if base and speeds[title] else None
        data["rows"][title] = {"seeds": len(results), "speed": speed, "cells": cells}
    for a, b, name in compare:
        of_a, of_b = (data["rows"][title]["cells"][name]["values"] for title in (a, b))
        if of_a and of_b:
            verdict = beats(of_a, of_b, lower_is_better=columns[name].lower_is_better)
            error = None if math.isnan(verdict.error) else verdict.error
            data["verdicts"].append(
                {
                    "a": a,
                    "b": b,
                    "column": name,
                    "difference": verdict.difference,
                    "error": error,
                    "says": verdict.sentence(a, b),
                }
            )
    return data


def markdown(data: Mapping[str, Any]) -> str:
    """The table that `collect` gives, for a README."""
    columns, rows = data["columns"], data["rows"]
    with_speed = any(row["speed"] is not None for row in rows.values())
    heads = [f"{t} ({c['unit']})" if c["unit"] else t for t, c in columns.items()]
    lines = ["| " + " | ".join(["run", "seeds", *heads, *(["speed"] if with_speed else [])]) + " |"]
    lines.append("|---" * lines[0].count(" | ") + "|---|")
    if any(c["chance"] is not None for c in columns.values()):
        chance = [_number(c["chance"], c) for c in columns.values()]
        lines.append(
            "| " + " | ".join(["chance", "", *chance, *([""] if with_speed else [])]) + " |"
        )
    for title, row in rows.items():
        cells = [_cell(row["cells"][t], c, row["seeds"]) for t, c in columns.items()]
        speed = "" if row["speed"] is None else f"{row['speed']:.2f}"
        last = [speed] if with_speed else []
        lines.append("| " + " | ".join([title, str(row["seeds"]), *cells, *last]) + " |")
    if data["verdicts"]:
        lines.append("")
    for verdict in data["verdicts"]:
        column = columns[verdict["column"]]
        numbers = f"difference {_number(verdict['difference'], column)}"
        if verdict["error"] is not None:
            numbers += f", standard errors together {_number(verdict['error'], column)}"
        lines.append(f"- {verdict['column']}: {verdict['says']} ({numbers}).")
    if data.get("missing"):
        lines += ["", f"Not finished: {', '.join(data['missing'])}."]
    return "\n".join(lines) + "\n"


def _found(column: Column, named: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What each of some mappings has for a column; those without it are left out."""
    metrics = (column.metric,) if isinstance(column.metric, str) else column.metric
    first = (next((m for m in metrics if m in one), None) for one in named)
    return [one[m] for one, m in zip(named, first, strict=True) if m is not None]


def _unit(column: Column, results: Sequence[Results]) -> str:
    if column.unit is not None:
        return column.unit
    told = _found(column, [r.units for r in results])
    if told:
        return told[0]
    values = _found(column, [r.values for r in results])
    return "%" if all(0 <= value <= 1 for value in values) else ""


def _cell(cell: Mapping[str, Any], column: Mapping[str, Any], seeds: int) -> str:
    if not cell["values"]:
        return ""
    text = _number(cell["mean"], column)
    if cell["sd"] is not None:
        text += f" ± {_number(cell['sd'], column)}"
    return text if len(cell["values"]) == seeds else f"{text} ({len(cell['values'])} seeds)"


def _number(value: float | None, column: Mapping[str, Any]) -> str:
    if value is None:
        return ""
    percent = column["unit"] == "%"
    digits = column["digits"] if column["digits"] is not None else 1 if percent else 2
    return f"{100 * value if percent else value:.{digits}f}"


def _plain(value: Any) -> Any:
    """NaN and infinities, which JSON lacks, as None."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
