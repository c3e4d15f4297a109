"""What pages show of images: inline thumbnails, boxes drawn over them, and lists of answers."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

COLOURS = 6  # of boxes, the classes c0 to c5 of report.css
NO_IMAGE = "<span class='image empty'>no image</span>"


class Answer(NamedTuple):
    """One of the best answers to a query.

    `image` is PIL, uint8 [H, W, 1|3|4] or encoded bytes; None where there is no image to show.
    """

    text: str
    score: float
    right: bool
    image: Any = None


def thumbnail_uri(image: Any, size: int = 192) -> str:
    """Data URI of an image: PIL, uint8 [H, W, 1|3|4] or [H, W], or encoded bytes.

    It is upright, as the model sees it, and transparency is laid on white. An image larger than `size` pixels is made
    smaller; a smaller one stays as it is, and the browser scales it.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = Image.open(io.BytesIO(image))
    elif not isinstance(image, Image.Image):
        array = np.asarray(image)
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    buffer = io.BytesIO()
    flat.save(buffer, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail_or_none(image: Any, size: int = 192) -> str | None:
    """The same; None where there is no image, or one that cannot be read."""
    try:
        return None if image is None else thumbnail_uri(image, size)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def frame_html(
    uri: str, boxes_Mx4: np.ndarray, marks: Sequence[str], tags: Sequence[str] = ()
) -> str:
    """An image with its boxes; each rectangle is drawn twice, so that it shows on any ground.

    Args:
        uri: of the image.
        boxes_Mx4: x1, y1, x2, y2 as fractions of it.
        marks: CSS classes of each box.
        tags: short texts at the boxes' first corners; none without.
    """
    boxes_Mx4 = np.asarray(boxes_Mx4, np.float64).reshape(-1, 4)
    drawn = ""
    for mark, (x1, y1, x2, y2) in zip(marks, boxes_Mx4, strict=True):
        place = f"x={x1:.5f} y={y1:.5f} width={max(x2 - x1, 0):.5f} height={max(y2 - y1, 0):.5f}"
        drawn += f"<rect class=under {place}></rect><rect class='{mark}' {place}></rect>"
    overlay = f'<svg viewBox="0 0 1 1" preserveAspectRatio="none">{drawn}</svg>' if drawn else ""
    for tag, mark, (x1, y1, *_) in zip(tags, marks, boxes_Mx4, strict=False):
        place = f"left:{100 * x1:.2f}%;top:{100 * y1:.2f}%"
        overlay += f"<b class='{mark}' style='{place}'>{escaped(tag)}</b>"
    return f'<div class=frame><img alt="" src="{uri}">{overlay}</div>'


def answer_rows(answers: Sequence[Answer]) -> str:
    """List items of texts with their scores, the right ones marked."""
    return "".join(
        f"<li{' class=right' if a.right else ''}><span>{'✓' if a.right else ''}</span>"
        f"<span>{escaped(a.text)}</span><span>{a.score:.3f}</span></li>"
        for a in answers
    )


def escaped(value: Any) -> str:
    """Any text, escaped."""
    return html.escape(str(value), quote=True)
