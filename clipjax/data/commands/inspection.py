"""`clipjax data inspect`: what a data set holds, from a sample of its records: numbers, and a page of images."""

import collections
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from clipjax.data.bad import BadRecord
from clipjax.data.commands.inspection_page import Shown, write_page
from clipjax.data.commands.named import Named, open_source
from clipjax.data.commands.shards import FILTERED
from clipjax.data.encoded_image import EncodedImage
from clipjax.data.filters import make_filter
from clipjax.data.geometry import WHOLE
from clipjax.data.orders.shuffle import Shuffle
from clipjax.data.regions import check_box_format, draw_regions
from clipjax.data.sources.rows import strings
from clipjax.errors import UserError
from clipjax.log.console import console
from clipjax.log.pages.numbers import short_number

IMAGES = 48  # of a page, of all sources together
_ALL = {"count": 0, "min_visible": 0.0, "min_side": 0.0}
_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"))


def inspect(data: Named, limit: int = 1000, output: str | None = None) -> int:
    """Prints a table for every named source, and writes a page of its images.

    Args:
      data: the sources. Tokens are counted with the config's tokenizer, without a config with CLIP's.
      limit: records of each source that are read, evenly from everywhere.
      output: an HTML file that needs nothing else; with a config it also shows the training views.

    Returns:
      0.

    Raises:
      UserError: an output that is there already, or a source that cannot be opened.
    """
    if limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}.")
    if output and os.path.exists(output):
        raise UserError(f"{output!r} is there already; choose another --output, or remove it.")
    tokenizer = data.tokenizer()
    stream = data.stream() if output and data.config is not None else None
    shown: dict[str, list[Shown]] = {}
    tables: dict[str, dict[str, str]] = {}
    for number, (name, entry) in enumerate(data.entries.items()):
        box_format = entry.get("box_format", "xyxy")
        check_box_format(box_format, f"the source {name!r}")
        source, wanted = open_source(entry, name), make_filter(entry.get("filter"), name)
        facts, shown[name] = Facts(tokenizer, box_format), []
        order = Shuffle([len(source)], [1.0], 0)
        for place in range(min(limit, len(source))):
            index = order.draw(place, 0)[1]
            try:
                record = source[index]
                if wanted is not None and not wanted(record):
                    facts.left_out[FILTERED] += 1
                    continue
                facts.add(record)
            except BadRecord as error:
                facts.left_out[str(error)] += 1
                continue
            except UserError:  # the files cannot be reached, which says nothing of the record
                raise
            except Exception as error:  # of a library that met damage, or of somebody's source
                facts.left_out[f"cannot be read ({type(error).__name__})"] += 1
                continue
            if output and len(shown[name]) < max(1, IMAGES // len(data.entries)):
                shown[name].append(Shown(index, record, box_format))
                if stream is not None:
                    view = stream.view(number, index, record, (data.config.seed, index))
                    shown[name][-1].train(stream.features, view)
        tables[name] = facts.table(len(source))
        _print(name, tables[name])
    if output:
        write_page(output, tables, shown)
        print(f"Images: {output}")
    return 0


class Facts:
    """What is counted of the records that are looked at.

    Attributes:
      left_out: reason -> records that could not be used, or that the filter turned down.
    """

    def __init__(self, tokenizer: Any, box_format: str):
        self._tokenizer, self._box_format = tokenizer, box_format
        self.left_out: collections.Counter[str] = collections.Counter()
        self._formats: collections.Counter[str] = collections.Counter()
        self._languages: collections.Counter[str] = collections.Counter()
        self._numbers: dict[str, list[float]] = collections.defaultdict(list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts one record.

        Raises:
          BadRecord: its images, captions or boxes cannot be used; then nothing of it is counted.
        """
        images = record.get("image")
        images = list(images) if isinstance(images, list | tuple) else [images]
        images = [image for image in images if image is not None]
        encoded_images = [EncodedImage(image) for image in images]
        texts = strings(record.get("text"))
        if not encoded_images and not texts:
            raise BadRecord("there is no image")
        for encoded in encoded_images:
            encoded.pixels(1 / 8)  # tells whether it is broken
        if texts and not any(text.strip() for text in texts):
            raise BadRecord("text is empty")
        for encoded in encoded_images:
            rng = np.random.default_rng(0)
            draw_regions(record, self._box_format, encoded.size, WHOLE, _ALL, rng)
        boxes = record.get("boxes")
        for image, encoded in zip(images, encoded_images, strict=True):
            width, height = encoded.size
            self._formats[image_format(image)] += 1
            self._note("width", width)
            self._note("height", height)
            self._note("longer / shorter side", max(encoded.size) / min(encoded.size))
            self._note("bytes an image", image.nbytes if hasattr(image, "nbytes") else len(image))
        self._note("images a record", len(encoded_images))
        self._note("captions a record", len(texts))
        self._note("regions a record", 0 if boxes is None else len(boxes))
        for text in texts:
            self._note("words a caption", len(text.split()))
            if self._tokenizer is not None:
                self._note("tokens a caption", len(self._tokenizer.encode(text)))
        self._languages[str(record.get("language"))] += 1

    def table(self, length: int) -> dict[str, str]:
        """The facts as text, label -> value; numbers as least, 5 %, median, 95 %, most.

        Args:
          length: records of the source.
        """
        seen = len(self._numbers["captions a record"])
        looked = seen + sum(self.left_out.values())
        found = {"records": f"{length:,}", "looked at": f"{looked:,}, evenly from everywhere"}
        for reason, n in self.left_out.most_common():
            found[f"left out: {reason}"] = f"{n:,} ({n / looked:.2%})"
        if not seen:
            return found
        if self._formats:
            sizes = self._numbers["bytes an image"]
            found["images together"] = f"about {short_number(sum(sizes) / looked * length)}B"
            found["formats"] = _shares(self._formats)
        sides = ("width", "height", "longer / shorter side", "bytes an image")
        each = ("images a record", "captions a record", "words a caption", "tokens a caption")
        for name in (*sides, *each):
            if self._numbers[name]:
                found[name] = _quantiles(self._numbers[name])
        tokens = np.array(self._numbers["tokens a caption"])
        if len(tokens):
            row = self._tokenizer.length
            found[f"longer than {row} tokens"] = f"{np.mean(tokens > row):.2%} of captions"
        found["languages"] = _shares(self._languages)
        found["regions a record"] = _quantiles(self._numbers["regions a record"])
        return found

    def _note(self, name: str, value: float) -> None:
        self._numbers[name].append(value)


def image_format(image: Any) -> str:
    """What kind of image this is, by its first bytes."""
    if hasattr(image, "shape"):
        return "array"
    head = bytes(image[:12])
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "WebP"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "other")


def printable(text: str, longest: int = 40) -> str:
    """A text of a data set for the terminal: nothing that moves its cursor, and not too long."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _quantiles(numbers: Sequence[float]) -> str:
    marks = np.quantile(np.asarray(numbers, np.float64), (0, 0.05, 0.5, 0.95, 1))
    if marks[0] == marks[-1]:
        return short_number(marks[0])
    return " · ".join(map(short_number, marks))


def _shares(counts: Mapping[str, int]) -> str:
    total, most = sum(counts.values()), collections.Counter(counts).most_common(8)
    parts = [f"{printable(name)} {n / total:.1%}" for name, n in most]
    more = len(counts) - len(most)
    return ", ".join(parts) + (f", and {more:,} more" if more else "")


def _print(name: str, rows: Mapping[str, str]) -> None:
    table = Table(
        box=None, pad_edge=False, header_style="bold", show_header=True, title_justify="left"
    )
    table.add_column(Text(name), style="dim")
    table.add_column(Text("least, 5 %, median, 95 %, most", style="dim"))
    for label, value in rows.items():
        table.add_row(Text(label), Text(value))
    console().print(table)
