"""The contact sheet of `clipjax data inspect`: one HTML file. What the data set brings is escaped or re-encoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.geometry import WHOLE
from clipjax.data.picture import Picture
from clipjax.data.regions import draw_regions
from clipjax.data.sources.rows import strings
from clipjax.log.pages.pictures import COLOURS, escaped, frame_html, thumbnail_uri
from clipjax.log.writers import replace_file

THUMB = 320  # pixels of the longer side
CAPTIONS, REGIONS, LETTERS = 4, 8, 240  # of a record that are shown

# No script and nothing from elsewhere would run even if something got through.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
.records { display: grid; gap: 14px; margin-top: 16px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.records figure { padding: 12px; }
.views { display: flex; gap: 10px; align-items: flex-start; }
.views > div { flex: 1 1 0; min-width: 0; font-size: 12px; color: var(--muted); }
.records ul { list-style: none; margin: 8px 0 0; padding: 0; font-size: 14px; line-height: 1.35; }
.records li { overflow-wrap: anywhere; padding: 2px 0; }
.records li:has(.dot) { font-size: 13px; }
.records .dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.records .part { margin-top: 8px; font-size: 12px; color: var(--muted); }
.records .index { font-size: 12px; color: var(--muted); margin-top: 8px; }
td.value { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts-table td:first-child { width: 1%; font-weight: 500; padding-right: 28px; }
.facts-table td { padding-top: 5px; padding-bottom: 5px; font-size: 14px; }
"""


class Shown:
    """One record on the page.

    Args:
      index: of the record in its source.
      record: a raw record that can be used.
      box_format: of its boxes.
    """

    def __init__(self, index: int, record: Mapping[str, Any], box_format: str):
        images = record["image"]
        picture = Picture(images[0] if isinstance(images, list | tuple) else images)
        self.index, self.size = index, picture.size
        self.language = str(record.get("language"))
        self.texts = strings(record.get("text"))
        scale = 2 * THUMB / max(picture.size)
        self.image = thumbnail_uri(picture.pixels(scale), THUMB)
        boxes = record.get("boxes")
        every = {"count": 0 if boxes is None else len(boxes), "min_visible": 0.0, "min_side": 0.0}
        rng = np.random.default_rng(0)
        self.boxes, self.region_texts = draw_regions(
            record, box_format, picture.size, WHOLE, every, rng
        )
        self.view: str | None = None
        self.view_boxes: np.ndarray = np.zeros((0, 4), np.float32)
        self.view_texts: list[str] = []
        self.view_regions: list[str] = []
        self.view_colours: list[int] = []  # those of the same regions as stored
        self.remark = ""

    def train(
        self,
        stream: Any,
        tokenizer: Any,
        source: int,
        record: Mapping[str, Any],
        rng: np.random.Generator,
    ) -> None:
        """Adds the view that training would see: pixels, captions, and regions moved with the pixels."""
        try:
            sample, _ = stream.sample(source, record, rng)
        except BadRecord as error:
            self.remark = str(error)
            return
        self.view = thumbnail_uri(sample["image"], THUMB)
        places = [
            (text, place)
            for place, entry in enumerate(record.get("region_text") or ())
            for text in ([entry] if isinstance(entry, str) else entry or ())
        ]
        known = _by_ids(tokenizer, [*(text for text, _ in places), *self.texts])
        colours = dict(reversed(places))
        rows = np.atleast_2d(sample["text"])
        self.view_texts = [_words(tokenizer, row, known) for row in rows]
        if "boxes" in sample:
            mask_M = sample["region_mask"]
            self.view_boxes = sample["boxes"][mask_M]
            rows = sample["region_text"][mask_M]
            self.view_regions = [_words(tokenizer, row, known) for row in rows]
            self.view_colours = [colours.get(t, n) for n, t in enumerate(self.view_regions)]


def write_page(
    path: str,
    tables: Mapping[str, Mapping[str, str]],
    shown: Mapping[str, Sequence[Shown]],
) -> None:
    """Writes the page.

    Args:
      path: of the HTML file.
      tables: source -> label -> value.
      shown: source -> its records.
    """
    style = Path(__file__).parents[2] / "assets" / "report.css"
    body = "".join(
        (f"<h2>{escaped(name)}</h2>\n" if len(tables) > 1 else "")
        + _section(tables[name], shown[name])
        for name in tables
    )
    title = ", ".join(tables)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)} · clipjax</title>\n"
        f"<style>\n{style.read_text(encoding='utf-8')}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escaped(title)}</h1></header>\n{body}</main>\n</body>\n</html>\n"
    )
    replace_file(path, page.encode("utf-8", "replace").decode("utf-8"))


def _section(table: Mapping[str, str], shown: Sequence[Shown]) -> str:
    rows = "".join(
        f"<tr><td>{escaped(k)}</td><td class=value>{escaped(v)}</td></tr>\n"
        for k, v in table.items()
    )
    note = "Several numbers are the least, 5 %, the median, 95 %, and the most."
    cards = "".join(map(_card, shown))
    return (
        f"<p class=note>{note}</p>\n"
        f"<div class=scroll><table class=facts-table><tbody>{rows}</tbody></table></div>\n"
        f"<div class=records>\n{cards}</div>\n"
    )


def _card(one: Shown) -> str:
    width, height = one.size
    views = f"<div>{_frame(one.image, one.boxes, range(len(one.boxes)))}as stored, {width} × {height}</div>"
    if one.view is not None:
        views += f"<div>{_frame(one.view, one.view_boxes, one.view_colours)}as trained on</div>"
    parts = f"<div class=views>{views}</div>{_lines(one.texts)}"
    parts += _regions(one.region_texts, range(len(one.region_texts)))
    if one.view is not None:
        parts += f"<p class=part>trained on</p>{_lines(one.view_texts)}"
        parts += _regions(one.view_regions, one.view_colours)
    if one.remark:
        parts += f"<p class=warn>{escaped(one.remark)}</p>"
    return f"<figure>{parts}<p class=index>record {one.index:,} · {escaped(one.language)}</p></figure>\n"


def _frame(uri: str, boxes_Mx4: np.ndarray, colours: Sequence[int]) -> str:
    return frame_html(uri, boxes_Mx4, [f"c{colour % COLOURS}" for colour in colours])


def _lines(texts: Sequence[str], marks: Sequence[str] | None = None, most: int = CAPTIONS) -> str:
    """Texts as items of a list, cut where they are many or long."""
    marks = [""] * len(texts) if marks is None else marks
    items = [
        f"<li>{mark}{escaped(_cut(text))}</li>" for mark, text in zip(marks, texts, strict=True)
    ]
    more = len(items) - most
    if more > 0:
        items[most:] = [f"<li class=muted>and {more:,} more</li>"]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _regions(texts: Sequence[str], colours: Sequence[int]) -> str:
    """Texts of regions, with the colours of their boxes."""
    return _lines(texts, [f"<span class='dot c{c % COLOURS}'></span>" for c in colours], REGIONS)


def _cut(text: str) -> str:
    """A text that is not too long for the page."""
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _by_ids(tokenizer: Any, texts: Sequence[str]) -> dict[bytes, str]:
    """The texts of a record by their ids, as not every tokenizer can turn ids into texts."""
    return (
        {row.tobytes(): t for row, t in zip(tokenizer(texts), texts, strict=True)} if texts else {}
    )


def _words(tokenizer: Any, ids_L: np.ndarray, known: Mapping[bytes, str]) -> str:
    found = known.get(np.ascontiguousarray(ids_L).tobytes())
    if found is None and hasattr(tokenizer, "decode"):
        found = tokenizer.decode(ids_L)
    return f"{len(ids_L)} tokens" if found is None else found
