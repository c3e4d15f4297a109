"""An image of scenes with their boxes and texts, to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from clipjax.data.images import decode

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
PANEL = 320  # pixels, width of a scene
LINE = 13
MARGIN = 10


def sheet(records: Sequence[Mapping[str, Any]], columns: int = 3) -> Image.Image:
    """Records of `Scenes` side by side, each with its boxes and below it a text of every region, and wrong captions.

    Args:
      records: at least one.
      columns: how many in a row.
    """
    panels = [_panel(record) for record in records]
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    width = min(columns, len(panels)) * (PANEL + MARGIN) + MARGIN
    page = Image.new("RGB", (width, sum(heights) + MARGIN * (len(rows) + 1)), "white")
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            page.paste(panel, (MARGIN + column * (PANEL + MARGIN), top))
        top += height + MARGIN
    return page


def _panel(record: Mapping[str, Any]) -> Image.Image:
    image = decode(record["image"]).convert("RGB")
    height = round(image.height * PANEL / image.width)
    image = image.resize((PANEL, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    lines = []
    for i, (box, texts) in enumerate(zip(record["boxes"], record["region_text"], strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        x1, y1, x2, y2 = (float(v) for v in box * (PANEL, height, PANEL, height))
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=2)
        draw.rectangle((x1, y1, x1 + 11, y1 + 13), fill=colour)
        draw.text((x1 + 3, y1), str(i + 1), "white", font=_font())
        lines.append((f"{i + 1}  {texts[-1]}", colour))
    lines += [(text, "black") for text in (record["text"][0], *record["text"][2:])]
    wrong = list(zip(record["hard_negatives"], record["negative_of"], strict=True))
    lines += [(f"not: {text}", "#777777") for text, of in wrong if of != 1]
    wrapped = [(part, colour) for text, colour in lines for part in _wrap(text)]
    panel = Image.new("RGB", (PANEL, height + LINE * len(wrapped) + 6), "white")
    panel.paste(image)
    draw = ImageDraw.Draw(panel)
    for number, (text, colour) in enumerate(wrapped):
        draw.text((0, height + 3 + LINE * number), text, colour, font=_font())
    return panel


def _font() -> Any:
    return ImageFont.load_default(11)


def _wrap(text: str) -> list[str]:
    """Lines that fit into a panel."""
    lines, font = [""], _font()
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > PANEL:
            lines.append("    " + word)
        else:
            lines[-1] = longer if not lines[-1].startswith("    ") else f"{lines[-1]} {word}"
    return lines
