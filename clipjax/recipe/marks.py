"""Marks of finished steps: `WORKDIR/done/NAME.json` says how the step was defined when it was done, and from what.

A mark is written in one step when the step's process has ended well, so a kill at any instant leaves a step either
done or not.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.config import OPEN_SECTIONS, flatten, load_config, to_json
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.log.writers import replace_file
from clipjax.recipe import Recipe, Step
from clipjax.workdir import FREE

# What may change without another result; evaluators are results here.
FREE_HERE = tuple(path for path in FREE if path != "evals")


class Marks:
    """The marks of one recipe's workdir.

    Args:
      recipe: whose steps.
      workdir: the recipe's directory.
    """

    def __init__(self, recipe: Recipe, workdir: Path):
        self._recipe, self._workdir = recipe, workdir

    def file(self, name: str) -> Path:
        """Where the mark of a step is."""
        return self._workdir / "done" / f"{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """The mark of a step: `definition`, `finished` (ns), `used` (step -> its `finished`); None if it is not done.

        Raises:
          UserError: the file is not a mark.
        """
        try:
            mark = json.loads(self.file(name).read_text(encoding="utf-8"))
            return {key: mark[key] for key in ("definition", "finished", "used")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(self.file(name))!r} is not a mark of clipjax recipe; remove it to do the step again."
            ) from error

    def write(self, name: str, defined: Mapping[str, Any]) -> None:
        """Marks a step as done; `defined` is its definition when it was started: files may have changed since."""
        used = {need: self.read(need)["finished"] for need in self._recipe.needs[name]}
        mark = {
            "definition": defined,
            "used": used,
            "finished": time.time_ns(),
        }
        replace_file(self.file(name), json.dumps(mark, indent=1, sort_keys=True) + "\n")

    def finished(self, names: Sequence[str]) -> list[str]:
        """Those of some steps that are done, as they are defined now.

        Raises:
          UserError: a step that is done was defined otherwise, or was made from a step that is to be done again.
        """
        return [name for name in names if self._done(name)]

    def _done(self, name: str) -> bool:
        mark = self.read(name)
        if mark is None:
            return False
        again = (
            f"remove {str(self.file(name))!r} and {str(self._workdir / name)!r} to do it again, or choose another "
            "--workdir"
        )
        differing = _differing(
            mark["definition"], definition(self._recipe, self._recipe.steps[name])
        )
        if differing:
            raise UserError(
                f"The step {name!r} is finished, but was defined otherwise ({'; '.join(differing)}); give the new one "
                f"another name, or {again}."
            )
        for need, finished in mark["used"].items():
            other = self.read(need) or {}
            if other.get("finished") != finished:
                raise UserError(
                    f"The step {name!r} is finished, but the step {need!r} that it was made from has been, or is to "
                    f"be, done again; {again}."
                )
        return True


def definition(recipe: Recipe, step: Step) -> dict[str, Any]:
    """All that decides what a step does, as plain data: what must not change once it is done.

    Of configs it is what they say, not where they stand; `{NAME}` stays as it is.

    Raises:
      UserError: a config that cannot be loaded.
    """
    found = {k: v for k, v in step.settings.items() if k not in ("config", "overrides")}
    if step.settings.get("config") is not None:
        file, overrides = step.settings["config"], override_list(step.settings["overrides"])
        config = load_config(recipe.config(file), base_config(), overrides)
        config = flatten(json.loads(to_json(config)))
        kept = ("evals.", "evals") if step.kind == "evaluate" else ("",)
        dropped = () if step.kind == "evaluate" else FREE_HERE
        found["config"] = {
            k: v for k, v in config.items() if k.startswith(kept) and not k.startswith(dropped)
        }
    elif step.settings.get("overrides"):
        found["overrides"] = step.settings["overrides"]
    return json.loads(json.dumps({"kind": step.kind, **found}))


def override_list(overrides: Mapping[str, Any]) -> list[str]:
    """`path=VALUE` as the command line takes them."""
    return [f"{path}={value!r}" for path, value in overrides.items()]


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, as words; fields that only a newer version of clipjax has count where they are not the default."""
    before, now = _flat(old), _flat(new)
    defaults = {f"config {k}": v for k, v in flatten(json.loads(to_json(base_config()))).items()}
    missing = "nothing"
    found = []
    for key in sorted(before.keys() | now.keys()):
        was, is_ = before.get(key, missing), now.get(key, missing)
        if key not in before and key in defaults and defaults[key] == is_:
            continue
        if key not in now and key.startswith("config ") and not _is_open(key[7:]):
            continue  # a field that there was
        if was != is_:
            found.append(f"{key}: then {was!r}, now {is_!r}")
    return found[:8] + ([f"and {len(found) - 8} more"] if len(found) > 8 else [])


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in found.items() if k != "config"}
    config = found.get("config")
    return flatten(rest) | (
        {f"config {k}": v for k, v in config.items()} if isinstance(config, Mapping) else {}
    )


def _is_open(path: str) -> bool:
    return (
        path.startswith(tuple(f"{section}." for section in OPEN_SECTIONS)) or path in OPEN_SECTIONS
    )
