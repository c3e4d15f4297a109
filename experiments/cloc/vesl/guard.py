"""A model's errors: one record's, or the model's own."""

from collections.abc import Callable, Sequence
from typing import Any

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError

IN_A_ROW = 64  # so many records that fail one after the other are no chance


class Guard:
    """A model that gives a reason where it fails, and goes on.

    A batch that fails is tried again record by record. Errors of files and memory, and what the user must hear, are
    raised; so is a failure of `IN_A_ROW` records after each other: a GPU that has fallen over would otherwise make bad
    records of all that are left.

    Args:
      model: called with a list of examples (or what else it takes), returns as many results.
      what: its name in messages.
    """

    def __init__(self, model: Callable[[list[Any]], Sequence[Any]], what: str):
        self._model, self._what, self._failed = model, what, 0

    def __call__(self, examples: list[Any]) -> list[Any]:
        """For every example the model's result, or a string, the reason why there is none.

        Raises:
          UserError: too many failures in a row, or another number of results; OSError, MemoryError: the model's.
        """
        if not examples:
            return []
        try:
            found = list(self._model(examples))
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:
            if len(examples) > 1:
                return [result for one in examples for result in self([one])]
            if isinstance(error, BadRecord):
                return [str(error)]
            self._failed += 1
            if self._failed == IN_A_ROW:
                raise UserError(
                    f"The {self._what} has failed on {IN_A_ROW} records in a row ({type(error).__name__}: {error}); "
                    "mend it, and start the job again to go on."
                ) from error
            return [f"{self._what} fails ({type(error).__name__})"]
        if len(found) != len(examples):
            raise UserError(
                f"The {self._what} gave {len(found)} results for {len(examples)} records."
            )
        self._failed = 0
        return found
