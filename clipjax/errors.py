"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """Something the user brought cannot work.

    The message is one clear sentence that names the thing and the way out. The command line prints it
    without a traceback and exits with status 2; library callers catch it like any other exception.
    """
