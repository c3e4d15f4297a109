"""Galleries of regions for the report: boxes with their nearest texts, and texts with the boxes that were found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipjax.log.pages.images import (
    COLOURS,
    NO_IMAGE,
    Answer,
    answer_rows,
    escaped,
    frame_html,
    thumbnail_or_none,
)

_SHOWN = 6  # regions or texts of an image
_SIDE = 320  # pixels of a thumbnail


@dataclass(frozen=True)
class Region:
    """A box and the best answers to it, best first.

    Attributes:
        box_4: x1, y1, x2, y2 as fractions of the image.
        text: its right text.
        answers: usually three; their images are not shown.
        rank: rank of the right text, from 1.
    """

    box_4: Sequence[float]
    text: str
    answers: Sequence[Answer]
    rank: int


@dataclass(frozen=True)
class RegionGallery:
    """Images and their regions: (PIL, uint8 [H, W, 1|3|4] or encoded bytes; its regions)."""

    title: str
    images: Sequence[tuple[Any, Sequence[Region]]]
    note: str = ""

    def html(self) -> str:
        """The gallery as a section of the page."""
        regions = [region for _, some in self.images for region in some]
        right = sum(region.rank == 1 for region in regions)
        note = (
            f"{self.note} {right} of {len(regions)} regions have a right text at the first place."
        )
        return _section(self.title, note, "".join(_regions(*one) for one in self.images))


@dataclass(frozen=True)
class Found:
    """A text, its true boxes [k, 4], the box [4] that the model gives for it, and their best IoU."""

    text: str
    right_Kx4: np.ndarray
    found_4: np.ndarray
    iou: float


@dataclass(frozen=True)
class GroundingGallery:
    """Images and what was found in them: (as in `RegionGallery`; texts with their boxes)."""

    title: str
    images: Sequence[tuple[Any, Sequence[Found]]]
    note: str = ""

    def html(self) -> str:
        """The gallery as a section of the page."""
        found = [one for _, some in self.images for one in some]
        right = sum(one.iou >= 0.5 for one in found)
        note = f"{self.note} {right} of {len(found)} have an IoU of at least 0.5."
        legend = (
            "<p class=legend><span><i class=truth></i>true box</span>"
            "<span><i class=found></i>box of the text, by the model</span></p>\n"
        )
        shown = "".join(_found(*one) for one in self.images)
        return _section(self.title, note, f"<div class=grounding>{shown}</div>\n", legend)


def _section(title: str, note: str, inner: str, legend: str = "") -> str:
    return f"<h2>{escaped(title)}</h2>\n<p class=note>{escaped(note.strip())}</p>\n{legend}{inner}"


def _regions(image: Any, regions: Sequence[Region]) -> str:
    some = regions[:_SHOWN]
    marks = [f"c{number % COLOURS}" for number in range(len(some))]
    tags = [str(number + 1) for number in range(len(some))]
    items = "".join(map(_region, some, marks, tags))
    framed = _frame(image, np.array([region.box_4 for region in some]), marks, tags)
    return (
        f"<section class=regions><div>{framed}{_more(len(regions), 'regions')}</div>"
        f"<ol>{items}</ol></section>\n"
    )


def _region(region: Region, mark: str, tag: str) -> str:
    shown = any(answer.right for answer in region.answers)
    rank = "" if shown else f"<p class=rank>the right one is at place {region.rank:,}</p>"
    return (
        f"<li><h3><b class={mark}>{tag}</b>{escaped(region.text)}</h3>"
        f"<ol class=answers>{answer_rows(region.answers)}</ol>{rank}</li>"
    )


def _found(image: Any, found: Sequence[Found]) -> str:
    cards = ""
    for one in found[:_SHOWN]:
        boxes_Mx4 = np.concatenate([one.right_Kx4, one.found_4[None]])
        marks = ["truth"] * len(one.right_Kx4) + ["found"]
        right = one.iou >= 0.5
        cards += (
            f"<div>{_frame(image, boxes_Mx4, marks)}"
            f"<div class='label{' right' if right else ''}'>{'✓ ' if right else ''}{escaped(one.text)}"
            f"<small>IoU {one.iou:.2f}</small></div></div>"
        )
    return f"<section>{cards}{_more(len(found), 'texts')}</section>\n"


def _more(count: int, what: str) -> str:
    return f"<p class=rank>and {count - _SHOWN:,} more {what}</p>" if count > _SHOWN else ""


def _frame(
    image: Any, boxes_Mx4: np.ndarray, marks: Sequence[str], tags: Sequence[str] = ()
) -> str:
    uri = thumbnail_or_none(image, _SIDE)
    return NO_IMAGE if uri is None else frame_html(uri, boxes_Mx4, marks, tags)
