"""Settings of scenes that mean nothing are refused, each with one sentence."""

from collections.abc import Sequence
from typing import Any

from clipjax.errors import UserError
from clipjax.registry import nearest, wanted

LEAST_SIDE = 8  # pixels of the longer side of the smallest object
MOST_OBJECTS = 50
SIZES = (32, 4096)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number within limits."""
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    if wanted(0, value) or value < least or (most is not None and value > most):
        raise UserError(f"Scenes need a whole number {limits} for {name!r}, not {value!r}.")
    return value


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number within limits."""
    if wanted(0.0, value) or not least <= value <= most:
        raise UserError(f"Scenes need a number from {least} to {most} for {name!r}, not {value!r}.")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise UserError(f"Scenes need True or False for {name!r}, not {value!r}.")
    return value


def among(name: str, value: Any, known: Sequence[str]) -> tuple[str, ...]:
    """Some of the known names, one or several; None: all."""
    if value is None:
        return tuple(known)
    names = (value,) if isinstance(value, str) else tuple(value) if _is_sequence(value) else ()
    for unknown in (n for n in names if n not in known):
        raise UserError(f"Scenes know no {unknown!r} for {name!r}{nearest(unknown, list(known))}.")
    if not names:
        raise UserError(f"Scenes need one or several names for {name!r}, or None, not {value!r}.")
    return names


def size(value: Any) -> tuple[int, int]:
    """(W, H), of a pair or of one side."""
    pair = (value, value) if not _is_sequence(value) else tuple(value)
    if len(pair) != 2 or any(wanted(0, v) or not SIZES[0] <= v <= SIZES[1] for v in pair):
        raise UserError(
            f"Scenes need a side or (width, height) from {SIZES[0]} to {SIZES[1]} pixels for 'size', not {value!r}."
        )
    return pair[0], pair[1]


def objects(value: Any) -> tuple[int, int]:
    """(fewest, most)."""
    pair = _pair("objects", value)
    if any(wanted(0, v) for v in pair) or not 1 <= pair[0] <= pair[1] <= MOST_OBJECTS:
        raise UserError(
            f"Scenes need (fewest, most) whole numbers from 1 to {MOST_OBJECTS} for 'objects', not {value!r}."
        )
    return pair


def scale(value: Any, size: tuple[int, int]) -> tuple[float, float]:
    """(low, high), of which the low one leaves something to see in an image of `size`."""
    low, high = _pair("scale", value)
    if any(wanted(0.0, v) for v in (low, high)) or not 0 < low <= high <= 1:
        raise UserError(f"Scenes need (low, high) above 0 and up to 1 for 'scale', not {value!r}.")
    if low * min(size) < LEAST_SIDE:
        raise UserError(
            f"Scenes with the scale {value!r} would have objects of less than {LEAST_SIDE} pixels in an image of "
            f"{size[0]} x {size[1]}; begin at {LEAST_SIDE / min(size):.3g}, or make the image larger."
        )
    return float(low), float(high)


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if not _is_sequence(value) or len(value) != 2:
        raise UserError(f"Scenes need two numbers, (low, high), for {name!r}, not {value!r}.")
    return value[0], value[1]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
