"""The bundled data set: drawings of 857 concepts in six styles, named in 36 languages.

A random-access source of raw records for the pipeline. Two things can be held out: a fifth of the
concepts (`split="unseen"`) and one style (`TEST_STYLE`). What it is made of, and under which
licences, stands in assets/drawings/README.md; tools/build_drawings.py makes it.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import importlib.resources
import io
import json
import operator
from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np
from PIL import Image

from clipjax.errors import UserError

TRAIN_STYLES = ("noto", "twemoji", "openmoji", "noto_v1", "emojione")
TEST_STYLE = "fluent_3d"  # never trained on

SPLITS = ("seen", "unseen", "all")
GROUPS = ("picture", "concept")


class Drawings:
    """Random-access source of drawings with their names; cheap to build, to copy and to pickle.

    The order is by concept, then style, then locale, and never changes. A concept that none of the
    `styles` draws has no record: `noto_v1` and `emojione` draw about three quarters of the
    concepts, `TEST_STYLE` lacks eight.

    A record is a dict of:
      `image`     list of uint8 RGBA arrays [64, 64, 4], straight alpha, read-only views of a
                  shared sheet: with `group="concept"` one per style that draws the concept, in
                  the order of `styles`; else exactly one
      `text`      [name, *keywords] in the record's language
      `name`, `keywords`, `language`
      `category`  one of `categories()`, in English whatever the language
      `concept`   int, index into the full list of concepts, the same for every split and style
      `style`     only with `group="picture"`

    Args:
      split: "seen" (673 concepts), "unseen" (184) or "all".
      styles: names among `TRAIN_STYLES` and `TEST_STYLE`.
      group: "picture" gives one record per drawing, "concept" one per concept.
      locales: names among `locales()`; each record is there once in every one.

    Raises:
      UserError: for a split, style, group or locale that does not exist or is named twice.
    """

    def __init__(
        self,
        split: Literal["seen", "unseen", "all"] = "seen",
        styles: Sequence[str] | str = TRAIN_STYLES,
        group: Literal["picture", "concept"] = "picture",
        locales: Sequence[str] | str = ("en",),
    ):
        (self.split,) = _check("split", (split,), SPLITS)
        self.styles = _check("style", styles, (*TRAIN_STYLES, TEST_STYLE))
        (self.group,) = _check("group", (group,), GROUPS)
        self.locales = _check("locale", locales, tuple(_index()["locales"]))

        self._rows: list[tuple[int, tuple[str, ...]]] = []  # (concept, styles of one record)
        for concept, entry in enumerate(_index()["concepts"]):
            if self.split not in ("all", entry["split"]):
                continue
            drawn = tuple(style for style in self.styles if entry["tiles"][style] is not None)
            if self.group == "picture":
                self._rows += [(concept, (style,)) for style in drawn]
            elif drawn:
                self._rows.append((concept, drawn))

    def __len__(self) -> int:
        return len(self._rows) * len(self.locales)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        row, locale = divmod(range(len(self))[operator.index(index)], len(self.locales))
        concept, styles = self._rows[row]
        entry = _index()["concepts"][concept]
        language = self.locales[locale]
        name, *keywords = _names(language)[concept]
        record = {
            "image": [_sheet(style)[entry["tiles"][style]] for style in styles],
            "text": [name, *keywords],
            "name": name,
            "keywords": keywords,
            "category": entry["category"],
            "concept": concept,
            "language": language,
        }
        if self.group == "picture":
            (record["style"],) = styles
        return record

    def __repr__(self) -> str:
        return f"Drawings({self.split!r}, {self.styles!r}, {self.group!r}, {self.locales!r})"

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (self.split, self.styles, self.group, self.locales)


def categories() -> tuple[str, ...]:
    """The five categories, in a fixed order."""
    return tuple(_index()["categories"])


def locales() -> dict[str, str]:
    """Locale code -> language, English first."""
    return dict(_index()["locales"])


def _check(kind: str, given: Sequence[str] | str, valid: Sequence[str]) -> tuple[str, ...]:
    """The given names as a tuple, or a UserError that says which ones there are."""
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if name not in valid:
            near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "there are only:"
            rest = "" if near else f" {', '.join(valid)}."
            raise UserError(f"The drawings have no {kind} {name!r}; {hint}{rest}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"The drawings need each {kind} once and at least one; got {list(names)}.")
    return names


def _read(name: str) -> bytes:
    """A file of the data set, wherever the package is installed."""
    folder = importlib.resources.files("clipjax") / "assets" / "drawings"
    return folder.joinpath(*name.split("/")).read_bytes()


@functools.cache
def _index() -> dict[str, Any]:
    return json.loads(_read("concepts.json"))


@functools.cache
def _names(locale: str) -> list[list[str]]:
    """Per concept [name, keyword, ...]."""
    return json.loads(gzip.decompress(_read(f"names/{locale}.json.gz")))


@functools.cache
def _sheet(style: str) -> np.ndarray:
    """All drawings of a style, uint8 [n, 64, 64, 4] (14 MB); decoded once a process in ~0.1 s."""
    index = _index()
    tile, columns = index["tile"], index["columns"]
    with Image.open(io.BytesIO(_read(f"{style}.webp"))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    grid = pixels.reshape(-1, tile, columns, tile, 4).swapaxes(1, 2)
    tiles = np.ascontiguousarray(grid).reshape(-1, tile, tile, 4)
    count = sum(concept["tiles"][style] is not None for concept in index["concepts"])
    tiles = tiles[:count]
    tiles.flags.writeable = False  # shared by every record
    return tiles
