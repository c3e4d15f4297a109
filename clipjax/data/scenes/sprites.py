"""The drawings that scenes are made of."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipjax.data.drawings import Drawings

# Mirrored or turned, these would no longer be what they are called: a clock shows another hour, a moon wanes.
ORIENTED = re.compile(
    r"\b(left|right|o’clock|\w+-thirty|waxing|waning|quarter|increasing|decreasing|globe showing|map)\b"
)

SOLID = 128  # alpha from which on a pixel belongs to an object
_SOLID = [255 * (alpha >= SOLID) for alpha in range(256)]


class Concept(NamedTuple):
    """A thing that is drawn in at least one of the styles.

    Attributes:
      number: index into the full list of concepts, as in the drawings' records.
      name: in the language of the scenes.
      english: the English name.
      category: one of the drawings' five.
      words: of the English name.
      keywords: `words` and those of the English keywords.
      rows: places of its drawings in `Drawings(split, styles)`.
    """

    number: int
    name: str
    english: str
    category: str
    words: frozenset[str]
    keywords: frozenset[str]
    rows: tuple[int, ...]

    @property
    def oriented(self) -> bool:
        """Whether flipping or turning it would make its name wrong."""
        return ORIENTED.search(self.english) is not None


@functools.cache
def concepts(split: str, styles: tuple[str, ...], locale: str) -> tuple[Concept, ...]:
    """What there is to draw, in the drawings' order."""
    english, local = Drawings(split, styles), Drawings(split, styles, locales=locale)
    found: dict[int, Concept] = {}
    for row in range(len(english)):
        record = english[row]
        number = record["concept"]
        if number in found:
            found[number] = found[number]._replace(rows=(*found[number].rows, row))
            continue
        name = record["name"]
        keywords = _words(" ".join(record["text"]))
        found[number] = Concept(
            number, local[row]["name"], name, record["category"], _words(name), keywords, (row,)
        )
    return tuple(found.values())


def confusable(one: Concept, other: Concept) -> bool:
    """Whether a name of one may mean the other, as "cat" and "cat face": all words of one are in the other."""
    return one.words <= other.words or other.words <= one.words


def unlike(things: Sequence[Concept], pool: Sequence[Concept], category: str) -> list[Concept]:
    """Concepts of a pool whose names are wrong for all of `things`: of `category` if there are any, else of all.

    Two things are alike if a name of one shares a word with the names or keywords of the other.
    """
    words = frozenset[str]().union(*(thing.words for thing in things))
    keywords = frozenset[str]().union(*(thing.keywords for thing in things))

    def among(choice: Iterable[Concept]) -> list[Concept]:
        return [c for c in choice if words.isdisjoint(c.keywords) and keywords.isdisjoint(c.words)]

    return among(c for c in pool if c.category == category) or among(pool)


def sprite(tile: np.ndarray, longest: int, flip: bool, angle: float) -> np.ndarray:
    """A drawing cut to its bounds, flipped, scaled and turned.

    Args:
      tile: uint8 RGBA [64,64,4].
      longest: its longer side in pixels, before it is turned.
      flip: left becomes right.
      angle: degrees, counter-clockwise.

    Returns:
      uint8 RGBA [h,w,4], straight alpha.
    """
    image = _cut(Image.fromarray(tile))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    share = longest / max(image.size)
    width, height = (max(1, round(side * share)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if angle:
        image = _cut(image.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    return np.asarray(image)


def _cut(image: Image.Image) -> Image.Image:
    """Without margins in which nothing is solid."""
    return image.crop(image.getchannel("A").point(_SOLID).getbbox())


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))
