"""From a name in a config to the object it means."""

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from clipjax.errors import UserError


def nearest(name: str, valid: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    """A hint such as ` (did you mean 'depth'?)`, or the list of what there is."""
    names = [str(n) for n in valid]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (there are: {', '.join(names)})"


def lookup(kind: str, table: Mapping[str, str], what: str) -> Callable[..., Any]:
    """Imports what `kind` names: a key of `table`, or an import path `package.module:Name`.

    Args:
      kind: short name or import path. Experiments name their own parts by import path.
      table: short name -> import path.
      what: what is being looked up, for the error message ("loss", "image tower", ...).

    Raises:
      UserError: there is no such name, module or attribute.
    """
    path = table.get(kind, kind)
    if ":" not in path:
        raise UserError(
            f"There is no {what} named {kind!r}{nearest(kind, table)} (or give an import path, "
            "'package.module:Name')."
        )
    return load(path, f"The {what} {path!r}")


def load(path: str, what: str) -> Any:
    """The object at the import path `package.module:Name`.

    Args:
      path: with one colon.
      what: subject of the error's sentence: "The loss 'a.b:c'".

    Raises:
      UserError: there is no such module or attribute, or the module fails while it is imported; its file and the line
        at which it fails are named.
    """
    module, attribute = path.split(":", 1)
    try:
        found = importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} cannot be imported: {_why(error, module)}.") from error
    if not hasattr(found, attribute):
        names = [n for n in vars(found) if not n.startswith("_")]
        close = difflib.get_close_matches(attribute, names, n=1, cutoff=0.6)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(
            f"{what} cannot be imported: module {module!r} has no attribute {attribute!r}{hint}."
        )
    return getattr(found, attribute)


def _why(error: Exception, module: str) -> str:
    """What is wrong with a module that cannot be imported."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):
        return (
            f"there is no module {missing!r}; put the folder that holds {module.partition('.')[0]!r} on PYTHONPATH, or "
            "keep the config in its project"
        )
    reason = " ".join(str(error).split()).rstrip(".") or "no reason given"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is of this file
    own = [f for f in frames if "importlib" not in f.filename and "site-packages" not in f.filename]
    at = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    return f"{at}{type(error).__name__}: {reason}"


# What a field may be, by its default: the first kind that fits decides. True is no number.
_KINDS = (
    ((bool,), "True or False"),
    ((int,), "a whole number"),
    ((int, float), "a number"),
    ((str,), "a string"),
    ((tuple, list), "a tuple"),
    ((Mapping,), "a section"),
)


def wanted(default: Any, value: Any) -> str | None:
    """What `value` should have been to be of the kind of `default`; None if it is, or any value will do."""
    for kind, words in _KINDS:
        if isinstance(default, kind):
            fits = isinstance(value, kind) and (bool in kind or not isinstance(value, bool))
            return None if fits else words
    return None


def call(function: Callable[..., Any], kwargs: Mapping[str, Any], what: str, **given: Any) -> Any:
    """`function(**given, **kwargs)`, where `kwargs` come from a user's config and are checked first; see `check`."""
    check(function, kwargs, what, **given)
    return function(**given, **kwargs)


def check(function: Callable[..., Any], kwargs: Mapping[str, Any], what: str, **given: Any) -> None:
    """Refuses settings from a user's config that `function(**given, **kwargs)` would not take.

    Raises:
      UserError: a keyword that `function` does not take (with the nearest one it does), a missing one, or another
        kind of value where the default is a number or a bool.
    """
    parameters = inspect.signature(function).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    reserved = ("parent", "name") if "parent" in parameters else ()  # a Flax module's own
    valid = [n for n in parameters if n not in given and n not in reserved]
    for name in kwargs:
        if name in given or (name not in valid and not free):
            raise UserError(f"{what} has no setting {name!r}{nearest(name, valid)}.")
        default = parameters[name].default if name in parameters else None
        words = wanted(default, kwargs[name]) if isinstance(default, int | float) else None
        if words:
            raise UserError(f"{what} needs {words} for {name!r}, not {kwargs[name]!r}.")
    missing = [
        n
        for n in valid
        if parameters[n].default is inspect.Parameter.empty
        and parameters[n].kind
        in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and n not in kwargs
    ]
    if missing:
        raise UserError(f"{what} needs the setting(s) {', '.join(missing)}.")
