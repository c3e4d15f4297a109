"""Regions of a training view: a record's boxes and their texts, moved with the pixels, and M of them drawn.

A record's `boxes` are [m,4], `region_text` is a list of m entries, each a string or a list of strings of which one is
taken. A source's `box_format` says what the numbers are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.geometry import Geometry
from clipjax.errors import UserError
from clipjax.registry import nearest

BOX_FORMATS = ("xyxy", "xywh", "xyxy_pixels", "xywh_pixels")


def check_box_format(name: str, where: str) -> None:
    """Refuses formats that there are not; `where` is such as "the source 'web'"."""
    if name not in BOX_FORMATS:
        raise UserError(
            f"The box_format of {where} cannot be {name!r}{nearest(name, BOX_FORMATS)}."
        )


def draw_regions(
    record: Mapping[str, Any],
    box_format: str,
    size: tuple[int, int],
    geometry: Geometry,
    settings: Mapping[str, Any],
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[str]]:
    """At most `count` regions of a view, each as likely, in the record's order.

    Args:
      record: may have no boxes.
      box_format: of its boxes, one of `BOX_FORMATS`; fractions of the upright image, or its pixels.
      size: (width, height) of the upright image.
      geometry: from the image to the view.
      settings: `count`; `min_visible`, the share of a box's area that must be left; `min_side`, of what is left, as a
        fraction of the view.
      rng: draws regions, and texts of those that have several.

    Returns:
      float32 [n,4] in fractions of the view, and n texts.

    Raises:
      BadRecord: boxes that are not m x 4 finite numbers, or not as many texts.
    """
    boxes_Mx4 = fractions(record.get("boxes"), box_format, size)
    texts = entries(record.get("region_text"), "region_text")
    if len(texts) != len(boxes_Mx4):
        raise BadRecord("boxes and region texts are not equally many")
    if not len(boxes_Mx4):
        return np.zeros((0, 4), np.float32), []
    boxes_Mx4, visible_M = geometry.boxes(boxes_Mx4)
    side_M = (boxes_Mx4[:, 2:] - boxes_Mx4[:, :2]).min(axis=1)
    kept_M = (visible_M > 0) & (visible_M >= settings["min_visible"] - 1e-6)
    kept_M &= (side_M > 0) & (side_M >= settings["min_side"])
    kept_M &= [bool(alternatives(text)) for text in texts]
    kept = np.flatnonzero(kept_M)
    if len(kept) > settings["count"]:
        kept = np.sort(rng.choice(kept, settings["count"], replace=False))
    found = []
    for number in kept:
        choices = alternatives(texts[number])
        found.append(choices[rng.integers(len(choices))])
    return boxes_Mx4[kept], found


def entries(values: Any, field: str) -> list[Any]:
    """What a field has for each box: a list's entries, or none of None.

    Raises:
      BadRecord: a string, or no list.
    """
    if values is None:
        return []
    if isinstance(values, str) or not _listed(values):
        raise BadRecord(f"{field} is not a list with one entry a box")
    return list(values)


def alternatives(text: Any) -> Sequence[str]:
    """The texts of one region that are not blank.

    Raises:
      BadRecord: it is neither None, a string nor a list of strings.
    """
    texts = [] if text is None else [text] if isinstance(text, str) else text
    if not _listed(texts) or not all(isinstance(t, str) for t in texts):
        raise BadRecord("text is neither a string nor a list of them")
    return [t for t in texts if t.strip()]


def _listed(values: Any) -> bool:
    return isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim > 0)


def fractions(boxes: Any, box_format: str, size: tuple[int, int]) -> np.ndarray:
    """Boxes as x1,y1,x2,y2 in fractions, float64 [m,4], clipped to the image.

    What lies outside of the image was never there, so it does not count as lost.
    """
    try:
        boxes_Mx4 = np.array([] if boxes is None else boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise BadRecord("boxes are not [m,4] numbers") from error
    if not boxes_Mx4.size:
        return np.zeros((0, 4))
    if boxes_Mx4.ndim != 2 or boxes_Mx4.shape[1] != 4 or not np.isfinite(boxes_Mx4).all():
        raise BadRecord("boxes are not [m,4] numbers")
    if box_format.startswith("xywh"):
        boxes_Mx4[:, 2:] += boxes_Mx4[:, :2]
    if box_format.endswith("pixels"):
        boxes_Mx4 /= np.array([*size, *size], np.float64)
    return np.clip(boxes_Mx4, 0, 1)
