"""Files that a command writes for the user: checked before the work, whole or not there."""

from pathlib import Path

from clipjax.errors import UserError


def check_writable(target: Path) -> None:
    """Finds out before the work that a file cannot be written after it."""
    existed = target.exists()
    try:
        target.open("ab").close()
    except OSError as error:
        raise UserError(
            f"The output {str(target)!r} cannot be written: {error.strerror}."
        ) from error
    if not existed:
        target.unlink()
