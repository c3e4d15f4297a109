"""The exceptions that are meant for the user's eyes."""


class UserError(Exception):
    """Something the user brought cannot work.

    The message is one clear sentence that names the thing and the way out. The command line prints it
    without a traceback and exits with status 2; library callers catch it like any other exception.
    """


class PictureError(UserError):
    """A UserError about one picture of a list.

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
