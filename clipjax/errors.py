"""The exceptions that are meant for the user's eyes."""

import contextlib
import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


class UserError(Exception):
    """Something the user brought cannot work.

    The message is one clear sentence that names the thing and the way out. The command line prints it
    without a traceback and exits with status 2; library callers catch it like any other exception.
    """


class ImageError(UserError):
    """A UserError about one image of a list.

    Attributes:
      place: in the list.
      reason: why it cannot be used.
    """

    def __init__(self, message: str, place: int, reason: str):
        super().__init__(message)
        self.place, self.reason = place, reason


class TryAgainError(UserError):
    """A UserError that may not come again: a process was late, or could not be reached. The exit status is 75."""


class SharedError(UserError):
    """A UserError that all processes of a job raise at the same point; only the first one prints it."""


def name_of(thing: Any) -> str:
    """The import path of a function or class, or of an object's class: `package.module:Name`."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def describe(value: Any) -> str:
    """What a value is, for a message: dtype[shape] of an array, else its type."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"


@contextlib.contextmanager
def mistakes_in(what: str, thing: Any) -> Iterator[None]:
    """Within it, whatever goes wrong in a forker's own code is told in one sentence.

    A UserError passes as it is, and so does what is nobody's mistake: a device or another process of the job that is
    gone, or no memory. The watchdog tells these apart, and such a run may be started again.

    Args:
      what: is being run, the beginning of the sentence: "The loss 'x' (package.module:my_loss)".
      thing: the function, class or object whose file the sentence names a line of.

    Raises:
      UserError: in place of any other exception, which stays its cause.
    """
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split(" (http")[0].strip().split("\n\n")[0].split())
        reason = reason[:300].rstrip(".")
        kind = type(error).__name__
        raise UserError(
            f"{what} fails{_line(error, thing)}: {kind}{': ' * bool(reason)}{reason}."
        ) from error


def _line(error: BaseException, thing: Any) -> str:
    """Where in the thing's own file the error arose."""
    try:
        file = inspect.getsourcefile(thing if hasattr(thing, "__qualname__") else type(thing))
    except TypeError:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == file]
    return f" at line {lines[-1]} of {Path(file).name}" if file and lines else ""
