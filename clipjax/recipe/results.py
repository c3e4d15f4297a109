"""What a finished step has found, whatever its kind: numbers by name, with their units and chance levels."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.errors import UserError
from clipjax.log.writers import read_jsonl


class Results(NamedTuple):
    """Of one step, or of several merged.

    Attributes:
      values: metric -> number: "EVALUATOR/METRIC" of train and evaluate steps, "METRIC" of call steps.
      chance: metric -> chance level, where known.
      units: metric -> unit, where an evaluator says so.
      speed: samples/s of a train step, the median over its log without the first line; None: not known.
    """

    values: dict[str, float]
    chance: dict[str, float]
    units: dict[str, str]
    speed: float | None = None


def read(folder: Path) -> Results:
    """The results in a step's folder; empty if it makes none.

    Raises:
      UserError: a file is there that no step has written so.
    """
    try:
        return merge([_of_evaluators(folder), _of_call(folder)])._replace(speed=_speed(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The results in {str(folder)!r} cannot be read: {error}.") from error


def merge(results: list[Results]) -> Results:
    """All of several steps as if of one; where two have a metric of the same name, the later counts."""
    found = Results({}, {}, {})
    for one in results:
        speed = one.speed if found.speed is None else found.speed
        found = Results(*(a | b for a, b in zip(found[:3], one[:3], strict=True)), speed)
    return found


def flat_numbers(results: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The numbers of nested dicts, by their names joined with "/"; True and False are none."""
    found: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{path}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[path + name] = float(value)
    return found


def _of_evaluators(folder: Path) -> Results:
    """`results.json` of a run, or the lines of `clipjax eval`."""
    found: dict[str, Any] = {}
    if (folder / "results.jsonl").exists():
        lines = map(json.loads, (folder / "results.jsonl").read_text(encoding="utf-8").splitlines())
        found = {line["suite"]: line for line in lines}
    elif (folder / "results.json").exists() and (folder / "config.json").exists():
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    parts = Results({}, {}, {})
    for suite, entry in found.items():
        protocol = entry.get("protocol", {})
        for into, values in (
            (parts.values, {k: float(v) for k, v in entry["metrics"].items()}),
            (parts.chance, protocol.get("chance", {})),
            (parts.units, protocol.get("units", {})),
        ):
            into |= {f"{suite}/{name}": value for name, value in values.items()}
    return parts


def _of_call(folder: Path) -> Results:
    file = folder / "results.json"
    if not file.exists() or (folder / "config.json").exists():
        return Results({}, {}, {})
    found = json.loads(file.read_text(encoding="utf-8"))
    protocol = found.pop("protocol", {})
    return Results(flat_numbers(found), protocol.get("chance", {}), protocol.get("units", {}))


def _speed(folder: Path) -> float | None:
    file = folder / "metrics.jsonl"
    if not file.exists():
        return None
    lines, _ = read_jsonl(file)
    speeds = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    return statistics.median(speeds[1:] or speeds) if speeds else None
