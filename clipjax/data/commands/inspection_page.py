"""The contact sheet of `clipjax data inspect`: one HTML file. What the data set brings is escaped or re-encoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.data.encoded_image import EncodedImage
from clipjax.data.features import Features, View
from clipjax.data.geometry import WHOLE
from clipjax.data.regions import draw_regions
from clipjax.data.sources.rows import strings
from clipjax.log.pages.images import COLOURS, escaped, frame_html, thumbnail_uri
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
        self.index, self.size, self.image = index, (0, 0), ""
        self.language = str(record.get("language"))
        self.texts = strings(record.get("text"))
        self.boxes: np.ndarray = np.zeros((0, 4), np.float32)
        self.region_texts: list[str] = []
        images = record.get("image")
        image = images[0] if isinstance(images, list | tuple) else images
        if image is not None:
            self._show(EncodedImage(image), record, box_format)
        self.views: list[str] = []
        self.trained = False
        self.view_boxes: np.ndarray = np.zeros((0, 4), np.float32)
        self.view_texts: list[str] = []
        self.view_regions: list[str] = []
        self.view_colours: list[int] = []  # those of the same regions as stored
        self.remark = ""

    def _show(self, encoded: EncodedImage, record: Mapping[str, Any], box_format: str) -> None:
        scale = 2 * THUMB / max(encoded.size)
        self.size, self.image = encoded.size, thumbnail_uri(encoded.pixels(scale), THUMB)
        boxes = record.get("boxes")
        every = {"count": 0 if boxes is None else len(boxes), "min_visible": 0.0, "min_side": 0.0}
        rng = np.random.default_rng(0)
        self.boxes, self.region_texts = draw_regions(
            record, box_format, encoded.size, WHOLE, every, rng
        )

    def train(self, features: Features, view: View) -> None:
        """Adds what training would see: the views' pixels, captions, and regions moved with the pixels.

        Args:
          features: of the run, opened.
          view: of this record, on which they have not run yet.
        """
        try:
            sample = features(view.record, view)
        except BadRecord as error:
            self.remark = str(error)
            return
        self.trained = True
        if "image" in sample:
            pixels = sample["image"]
            views = pixels if pixels.ndim == 4 else pixels[None]
            self.views = [thumbnail_uri(one, THUMB) for one in views]
        regions = view.captions.get("regions", [])
        self.view_texts = [
            text for name, texts in view.captions.items() if name != "regions" for text in texts
        ]
        if "boxes" in sample:
            places = [
                (text, place)
                for place, entry in enumerate(view.record.get("region_text") or ())
                for text in ([entry] if isinstance(entry, str) else entry or ())
            ]
            colours = dict(reversed(places))
            self.view_boxes = sample["boxes"][sample["region_mask"]]
            self.view_regions = regions
            self.view_colours = [colours.get(t, n) for n, t in enumerate(regions)]


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
    views = ""
    if one.image:
        stored = _frame(one.image, one.boxes, range(len(one.boxes)))
        views = f"<div>{stored}as stored, {width} × {height}</div>"
    for number, view in enumerate(one.views):
        boxes, colours = (one.view_boxes, one.view_colours) if not number else ((), ())
        which = f", view {number + 1}" if len(one.views) > 1 else ""
        views += f"<div>{_frame(view, boxes, colours)}as trained on{which}</div>"
    parts = f"<div class=views>{views}</div>{_lines(one.texts)}"
    parts += _regions(one.region_texts, range(len(one.region_texts)))
    if one.trained:
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
