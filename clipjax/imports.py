"""Modules that a run names by import path: from where they are imported, and what a checkpoint records of them.

`experiments.mine.losses:my_loss` lies under the root of a project. Every command makes the root of the config's file
importable. A checkpoint records {module: root}, so that `clipjax.load`, `eval` and `convert` find the modules again.
"""

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipjax.errors import UserError

_MARKS = ("pyproject.toml", ".git", "experiments")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# Fields, beside `kind`, whose value may be an import path.
_FIELDS = ("kind", "name", "schedule")


def import_root(file: Path) -> Path:
    """The folder from which a file's import paths are meant: `experiments.mine.losses:my_loss` lies under it.

    It is the nearest folder above the file that is a project (it holds `pyproject.toml`, `.git` or `experiments`), or
    else the file's own.
    """
    folder = file.absolute().parent
    projects = (p for p in (folder, *folder.parents) if any((p / mark).exists() for mark in _MARKS))
    return next(projects, folder)


def make_importable(root: Path | str) -> None:
    """Adds a folder to those that Python imports from, after all others: nothing installed is shadowed."""
    if str(root) not in sys.path:
        sys.path.append(str(root))


def import_paths(config: Mapping[str, Any]) -> list[str]:
    """All import paths `module:Name` in a config: values of `kind`, `name` and `schedule`, in order, each once."""
    return list(dict.fromkeys(_import_paths(config)))


def _import_paths(value: Any, field: str = "kind") -> Iterator[str]:
    if isinstance(value, str):
        if field in _FIELDS and _IMPORT_PATH.fullmatch(value):
            yield value
    elif hasattr(value, "items"):
        for name, child in value.items():
            yield from _import_paths(child, name)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _import_paths(child, "")


def used_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """What a run records of the modules that its config names by import path: {module: root}.

    Args:
      config: the run's config, or a plain dict of it.

    Returns:
      For each module, but those of clipjax, the folder that it is imported from: `{"experiments.mine.losses":
      "~/project"}`. A module that cannot be found has the root "".
    """
    modules = dict.fromkeys(path.partition(":")[0] for path in import_paths(config))
    return {m: _root(m) for m in modules if m.partition(".")[0] != "clipjax"}


def find_modules(config: Mapping[str, Any], recorded: Mapping[str, str], checkpoint: str) -> None:
    """Makes the modules importable that a checkpoint's model and tokenizer need, and where it can be its others.

    A module is looked for where it is importable already, under its recorded root, and in the project of the current
    directory.

    Args:
      config: of the checkpoint.
      recorded: what `used_modules` gave when it was written; empty for one of an earlier version.
      checkpoint: its path, for the error.

    Raises:
      UserError: a module of the model or the tokenizer is nowhere.
    """
    here = import_root(Path.cwd() / "config.py")
    needed = import_paths({k: config[k] for k in ("model", "tokenizer") if k in config})
    for path in import_paths(config):
        module = path.partition(":")[0]
        for root in (recorded.get(module), here):
            if root and not _root(module) and _file(module, Path(root)):
                make_importable(root)
        if not _root(module) and path in needed:
            was = recorded.get(module)
            raise UserError(
                f"The checkpoint {checkpoint!r} needs {path!r}, but there is no module {module!r}"
                + (f" (its run had it from {was!r})" if was else "")
                + "; put the folder that holds "
                f"{module.partition('.')[0]!r} on PYTHONPATH, or give it to clipjax.load as root."
            )


def _root(module: str) -> str:
    """The folder from which a module is imported; "" if it cannot be found. Imports its parent packages only."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # whatever is wrong in a parent package shows when the module is imported
        return ""
    if spec is None:
        return ""
    places: Iterable[str] = [spec.origin] if spec.origin else spec.submodule_search_locations or ()
    for place in map(Path, places):
        file = place.parent if place.name == "__init__.py" else place
        if file.is_absolute():
            return str(file.parents[module.count(".")])
    return ""


def _file(module: str, root: Path) -> Path | None:
    """The module's file or package under a root, if there is one."""
    path = root.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path) if p.exists()), None)
