"""What is true of the objects of a scene. Everything is read from boxes, so that it can be checked against them."""

import math
from collections.abc import Sequence

Box = Sequence[float]  # x1, y1, x2, y2 as fractions of the image

SMALL, LARGE = 0.2, 0.35  # the square root of a box's share of the image: below, above
TWICE = 2.0  # of two things with one name, the larger has at least so many times the area
HIDES = 0.05  # share of a thing that another must hide to be in front of it

# Row and column of the image's thirds -> words.
PLACES = {
    (0, 0): "at the top left",
    (0, 1): "at the top",
    (0, 2): "at the top right",
    (1, 0): "on the left",
    (1, 1): "in the middle",
    (1, 2): "on the right",
    (2, 0): "at the bottom left",
    (2, 1): "at the bottom",
    (2, 2): "at the bottom right",
}

Relation = tuple[int, str, int]  # (object, words, object)


def area(box: Box) -> float:
    """Share of the image."""
    x1, y1, x2, y2 = box
    return (x2 - x1) * (y2 - y1)


def centre(box: Box) -> tuple[float, float]:
    """x, y."""
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2


def size(box: Box, full: Box) -> str:
    """One of "small", "large", and "" for what is neither, or is small only because a part of it is hidden."""
    words = {_size(box), _size(full)}
    return words.pop() if len(words) == 1 else ""


def place(box: Box) -> tuple[int, int]:
    """The third of the image's height and width in which the centre of a box is: a key of `PLACES`."""
    x, y = centre(box)
    return min(int(3 * y), 2), min(int(3 * x), 2)


def opposite(where: tuple[int, int]) -> tuple[int, int]:
    """Another place: left for right, or top for bottom; a corner for the middle."""
    row, column = where
    if column != 1:
        return row, 2 - column
    return (2 - row, column) if row != 1 else (0, 0)


def direction(one: Box, other: Box) -> str:
    """Where one box is, seen from another: words, or "" if it is nowhere clearly.

    The centre of neither is within the other's extent in that direction, and there is no larger distance in the other
    direction.
    """
    (x, y), (u, v) = centre(one), centre(other)
    if abs(x - u) >= abs(y - v):
        if x < other[0] and u > one[2]:
            return "to the left of"
        if x > other[2] and u < one[0]:
            return "to the right of"
    if abs(y - v) >= abs(x - u):
        if y < other[1] and v > one[3]:
            return "above"
        if y > other[3] and v < one[1]:
            return "below"
    return ""


def relations(boxes: Sequence[Box], cover: Sequence[Sequence[float]]) -> list[Relation]:
    """All relations of pairs, in both ways.

    Args:
      boxes: of visible parts.
      cover: share of object i (row) at which one sees object j (column).
    """
    found = []
    for i, one in enumerate(boxes):
        for j, other in enumerate(boxes):
            if i == j:
                continue
            if words := direction(one, other):
                found.append((i, words, j))
            if cover[j][i] >= HIDES:
                found.append((i, "in front of", j))
            if cover[i][j] >= HIDES:
                found.append((i, "behind", j))
    return found


def apart(one: Box, other: Box, full_one: Box, full_other: Box) -> tuple[str, str] | None:
    """Words that tell two things of the same name apart, such as ("smaller", "larger"); None if there are none."""
    pairs = ((one, other), (full_one, full_other))
    if all(area(b) >= TWICE * area(a) for a, b in pairs):
        return "smaller", "larger"
    if all(area(a) >= TWICE * area(b) for a, b in pairs):
        return "larger", "smaller"
    return {
        "to the left of": ("left", "right"),
        "to the right of": ("right", "left"),
        "above": ("upper", "lower"),
        "below": ("lower", "upper"),
    }.get(direction(one, other))


def _size(box: Box) -> str:
    side = math.sqrt(area(box))
    return "small" if side < SMALL else "large" if side > LARGE else ""
