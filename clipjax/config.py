"""Load, override, check and print a run's config.

A config is an `ml_collections.ConfigDict` from `get_config(arg=None)` in a Python file. `base_config()` of
clipjax/defaults.py names every field; a config file starts from it and changes what differs. Lengths of time are
samples; a config may also say "20 steps", "3 epochs" or "5%" (of the whole run): `in_samples` converts them once.
"""

import ast
import importlib.util
import inspect
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from clipjax.errors import UserError
from clipjax.imports import import_root, make_importable
from clipjax.registry import nearest, wanted

# Sections whose entries a user names, with any fields; each entry is checked where it is built.
NAMED_SECTIONS = ("losses", "data.sources", "data.features", "evals", "init", "refreshes")
# Those, and sections of a kind, whose fields are its own.
OPEN_SECTIONS = (*NAMED_SECTIONS, "model", "tokenizer", "data.order", "mesh", "optim.settings")

# Besides durations and what is None by default.
NULLABLE = ("checkpoint.keep",)


def load_config(file_and_arg: str, base: ConfigDict, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of FILE[:arg] with overrides such as `config.model.image.depth=6` applied, checked and locked.

    `base` has every field with its default (`clipjax.defaults.base_config()`).

    Raises:
      UserError: no such file, a file without `get_config`, an unknown field or a wrong type (with the nearest name).
    """
    path, _, arg = file_and_arg.partition(":")
    file = existing(path, "config")
    config = call_file(file, arg, "get_config", "config")
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of {path!r} must return a ConfigDict, not a {type(config).__name__}; "
            "start from clipjax.defaults.base_config()."
        )
    for override in overrides:
        apply_override(config, override)
    validate(config, base)
    return config.lock()


def existing(path: str, what: str) -> Path:
    """The file at a path; UserError with those beside it if there is none, where `what` is "config" or the like."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"There is no {what} file {path!r}{_nearby(file)}.")
    return file


def import_file(file: Path) -> ModuleType:
    """The module in a Python file that is in no package, such as a config; one config builds on another with

    quickstart = import_file(Path(__file__).with_name("quickstart.py"))
    """
    make_importable(import_root(file))
    spec = importlib.util.spec_from_file_location(f"clipjax_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_file(file: Path, arg: str, function: str, what: str) -> Any:
    """What `function(arg)` of a Python file returns. Whatever goes wrong in it is told in one sentence.

    Args:
      file: such as a config's or a recipe's.
      arg: for the function; "": it is called without one.
      function: its name: "get_config".
      what: for the errors: "config".
    """
    path = str(file)
    try:
        module = import_file(file)
        if not hasattr(module, function):
            raise UserError(f"The {what} file {path!r} defines no function {function}(arg=None).")
        call = getattr(module, function)
        if arg and not inspect.signature(call).parameters:
            raise UserError(f"The {what} file {path!r} takes no argument, but {arg!r} was given.")
        return call(arg) if arg else call()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"The {what} file {path!r} is not valid Python: {error}.") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f" fails at line {lines[-1]}" if lines else " fails"
        reason = " ".join(f"{error.args[0] if error.args else 'no reason given'}".split())
        raise UserError(
            f"The {what} file {path!r}{where}: {type(error).__name__}: {reason.rstrip('.')}."
        ) from error


def apply_override(config: ConfigDict, override: str) -> None:
    """Sets one field from `a.b=value` (a leading `config.` is allowed). The value is Python, or else a string.

    Raises:
      UserError: no such field (with the nearest one), or a value of another type than the field has.
    """
    path, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"The override {override!r} has no value; write --config.{path}=VALUE.")
    path = path.removeprefix("config.")
    *parents, leaf = path.split(".")
    node: Any = config
    for i, name in enumerate(parents):
        node = _child(node, name, ".".join(parents[:i]))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, dict):
        try:
            value = ConfigDict(value, type_safe=False)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"config.{path} cannot be {text}: the names of fields are strings without dots."
            ) from error
    is_open = ".".join(parents) in OPEN_SECTIONS or any(
        ".".join(parents[: i + 1]) in NAMED_SECTIONS for i in range(len(parents))
    )
    if is_open and isinstance(node, ConfigDict) and leaf not in node:
        node[leaf] = value
        return
    old = _child(node, leaf, ".".join(parents))
    if isinstance(old, ConfigDict) and not isinstance(value, ConfigDict):
        raise UserError(
            f"config.{path} is a section with the fields {', '.join(old)}; set one of them."
        )
    if isinstance(old, str) and not isinstance(value, str) and not _is_duration(path):
        value = text
    check_type(path, old, value)
    node[leaf] = value


def validate(config: ConfigDict, base: ConfigDict) -> None:
    """Checks names and types of all fields against `base`.

    Raises:
      UserError: the first field that is unknown, missing, or of a wrong type.
    """
    _validate(config, base, "")
    for path in ("losses", "data.sources", "data.features", "evals", "refreshes"):
        for name, entry in _section(config, path).items():
            if not isinstance(entry, Mapping | ConfigDict):
                raise UserError(
                    f"config.{path}.{name} must be a section such as {{'kind': ...}}, not {entry!r}."
                )
    for path in ("model", "tokenizer", "data.order"):
        section = _section(config, path)
        if not isinstance(section, Mapping | ConfigDict) or "kind" not in section:
            raise UserError(f"config.{path} must be a section with a 'kind'.")
    if not config.losses:
        raise UserError(
            "config.losses is empty; name at least one loss, such as {'contrastive': {'kind': 'softmax'}}."
        )


def _validate(config: Mapping[str, Any], base: Mapping[str, Any], path: str) -> None:
    for name in config:
        if name not in base:
            raise UserError(f"The config has no field {path + name!r}{nearest(name, base)}.")
    for name, default in base.items():
        here = path + name
        if name not in config:
            raise UserError(
                f"The config lacks the field {here!r}; start from clipjax.defaults.base_config()."
            )
        value = config[name]
        if (
            value is None
            and default is not None
            and here not in NULLABLE
            and not _is_duration(here)
        ):
            raise UserError(f"config.{here} cannot be None.")
        check_type(here, default, value)
        if isinstance(default, ConfigDict) and here not in OPEN_SECTIONS:
            _validate(value, default, here + ".")


def check_type(path: str, old: Any, new: Any) -> None:
    """Refuses a value of another kind than the field has; durations may be numbers or strings."""
    schedule = path.startswith("losses.") and path.endswith(".weight")  # `make_losses` checks it
    if old is None or new is None or schedule or _is_duration(path):
        return
    what = wanted(*(dict(x) if isinstance(x, ConfigDict) else x for x in (old, new)))
    if what:
        raise UserError(f"config.{path} must be {what}, not {new!r}.")


def _is_duration(path: str) -> bool:
    return path.rpartition(".")[2] in ("total_samples", "warmup", "every", "keep_every")


def in_samples(
    value: int | float | str | None, what: str, batch_size: int, epoch: int, total: int | None
) -> int | None:
    """A duration as a number of samples.

    Args:
      value: samples, or "N steps", "N epochs", "N samples", "N%" of the whole run; None stays None.
      what: the field, for the error message.
      batch_size: samples a step.
      epoch: samples of all sources together.
      total: samples of the whole run; None where a percentage makes no sense.

    Raises:
      UserError: it cannot be understood, or is negative.
    """
    if value is None:
        return None
    match = re.fullmatch(
        r"\s*(\d+(?:_\d+)*(?:\.\d+)?(?:e[+-]?\d{1,2})?)\s*(%|(?:sample|step|epoch)s?|)\s*",
        str(value),
    )
    units = {"": 1, "sample": 1, "step": batch_size, "epoch": epoch, "%": total and total / 100}
    factor = match and units[match[2].removesuffix("s")]
    if not factor:
        hint = "" if total else " (a percentage of itself makes no sense)"
        raise UserError(
            f"config.{what} = {value!r} is not a valid duration; write samples, or '10 steps', '2 epochs', '5%'{hint}."
        )
    count = int(match[1]) if match[1].isdecimal() else float(match[1])
    # A small share of a short run still means "often", not "never".
    return max(round(count * factor), 1) if count else 0


def to_json(config: Mapping[str, Any]) -> str:
    """The config as JSON text, keys sorted; tuples become lists."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Inverse of `to_json`, with tuples for lists; ValueError if the text is not a JSON object."""

    def tuples(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuples(v) for v in value)
        return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value

    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise ValueError("a config is a JSON object")
    return ConfigDict(tuples(plain), type_safe=False)


def flatten(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"model.image.depth": 6, ...}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            flat |= flatten(value, f"{path}{name}.")
        else:
            flat[path + name] = value
    return flat


def _child(node: Any, name: str, path: str) -> Any:
    if not isinstance(node, ConfigDict):
        raise UserError(f"config.{path} is a value and has no field {name!r}.")
    if name not in node:
        raise UserError(
            f"The config has no field {f'{path}.{name}'.lstrip('.')!r}{nearest(name, list(node))}."
        )
    return node[name]


def _section(config: Mapping[str, Any], path: str) -> Any:
    """The section at a path whose parents exist; None if it does not."""
    *parents, leaf = path.split(".")
    for name in parents:
        config = config[name]
    return config.get(leaf)


def _nearby(file: Path) -> str:
    folder = file.parent
    names = sorted(str(p) for p in folder.glob("*.py")) if folder.is_dir() else []
    return nearest(str(file), names) if names else ""
