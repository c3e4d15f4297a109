"""Pictures for a page: inline thumbnails, and boxes drawn over them."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

COLOURS = 6  # of boxes, the classes c0 to c5 of report.css


def thumbnail_uri(image: Any, size: int = 192) -> str:
    """Data URI of a picture: PIL, uint8 [H, W, 1|3|4] or [H, W], or encoded bytes.

    Transparency is laid on white. A picture larger than `size` pixels is made smaller; a smaller
    one stays as it is, and the browser scales it.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = Image.open(io.BytesIO(image))
    elif not isinstance(image, Image.Image):
        array = np.asarray(image)
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    image = image.convert("RGBA")
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    buffer = io.BytesIO()
    flat.save(buffer, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def frame_html(
    uri: str, boxes_Mx4: np.ndarray, marks: Sequence[str], tags: Sequence[str] = ()
) -> str:
    """A picture with its boxes; each rectangle is drawn twice, so that it shows on any ground.

    Args:
        uri: of the picture.
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
        overlay += f"<b class='{mark}' style='{place}'>{html.escape(tag)}</b>"
    return f'<div class=frame><img alt="" src="{uri}">{overlay}</div>'
