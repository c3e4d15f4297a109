"""A model's errors: one record's, the model's own, or the machine's."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError

IN_A_ROW = 64  # so many records that fail one after the other are no chance
AT_THE_END = 8  # so many at the end of a shard may be the beginning of that


class Failed(NamedTuple):
    """There is no result for an example.

    Attributes:
      reason: why.
      broken: whether the model may be to blame; if not, the record is a bad one.
    """

    reason: str
    broken: bool = True


class Guard:
    """A model that gives a reason where it fails, and goes on.

    A batch that fails is tried again record by record. What the user must hear is raised, and so are the machine's
    errors (files, memory, a GPU) and a failure of `IN_A_ROW` records after each other: what has fallen over would
    otherwise make bad records of all that are left.

    Args:
      model: called with a list of examples (or what else it takes), returns as many results.
      what: its name in messages.
    """

    def __init__(self, model: Callable[[list[Any]], Sequence[Any]], what: str):
        self._model, self._what, self._failed = model, what, 0

    def __call__(self, examples: list[Any]) -> list[Any]:
        """For every example the model's result, or `Failed`.

        Raises:
          UserError: the model's, the machine's, too many failures in a row, or another number of results.
        """
        if not examples:
            return []
        try:
            found = list(self._model(examples))
        except UserError:
            raise
        except Exception as error:
            if len(examples) > 1:
                return [result for one in examples for result in self([one])]
            return [self._failure(error)]
        if len(found) != len(examples):
            raise UserError(
                f"The {self._what} gave {len(found)} results for {len(examples)} records."
            )
        self._failed = 0
        return found

    def _failure(self, error: Exception) -> Failed:
        if isinstance(error, BadRecord):
            return Failed(str(error), broken=False)
        said = f"{type(error).__name__}: {first_line(error)}"
        if _is_of_the_machine(error):
            raise UserError(
                f"The {self._what} cannot go on here ({said}); mend that, and start the job again to go on."
            ) from error
        self._failed += 1
        if self._failed >= IN_A_ROW:
            raise UserError(
                f"The {self._what} has failed on {self._failed} records in a row ({said}); mend it, and start the job "
                "again to go on."
            ) from error
        return Failed(f"{self._what} fails ({type(error).__name__})")


def first_line(error: Exception) -> str:
    """The first line of what an error says, which for some libraries is a page."""
    return next(iter(str(error).strip().splitlines()), "no reason is given")


def _is_of_the_machine(error: Exception) -> bool:
    """What torch raises of memory and GPUs is told by its name, so that torch need not be there."""
    return (
        isinstance(error, OSError | MemoryError)
        or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")
        or "CUDA error" in str(error)
    )
