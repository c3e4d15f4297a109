"""`clipjax data verify`: reads and decodes every record, says which cannot be used and why, and which have changed."""

import collections
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from rich.table import Table
from rich.text import Text

from clipjax.data.bad import BadRecord
from clipjax.data.captions import make_captions, texts_of
from clipjax.data.commands.hashes import GONE, UNREADABLE, Hashes, hash_images, open_text
from clipjax.data.commands.named import Named, open_source
from clipjax.data.features import FIRST, Features, View
from clipjax.data.features.image import Image
from clipjax.data.features.text import Text as Captions
from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.geometry import WHOLE
from clipjax.data.images import decode
from clipjax.data.regions import check_box_format, draw_regions
from clipjax.data.sources.rows import strings
from clipjax.data.workers import check_workers, each
from clipjax.errors import UserError
from clipjax.log.console import console

CHUNK = 128  # records of a piece of work
OUTSIDE = "a box is empty or outside of the image"
_ALL = {"count": 0, "min_visible": 0.0, "min_side": 0.0}


def verify(
    data: Named,
    output: str | None = None,
    hashes: str | None = None,
    workers: int = 1,
    limit: int | None = None,
) -> int:
    """Checks the records of all named sources, prints a table of reasons, and how many records have each.

    A record is bad for the first of: it cannot be read; its image does not decode to the last pixel; a caption is no
    string or not UTF-8; there is no caption that the config's policy (without a config: anyone) could use; boxes are
    not m x 4 finite numbers with as many texts, or lie outside; a further feature of the config (labels, stored
    vectors, ...) cannot use it; the bytes of its image have changed. Without a config a record needs an image and a
    text, with one what the features ask for.

    Args:
      data: the sources.
      output: JSON lines of `source`, `index`, `reason`, one a bad record.
      hashes: a file of lines "index sha256" of the images' bytes; it is written, or if it is there, compared.
      workers: processes.
      limit: only the first records of each source.

    Returns:
      0; 1 where anything is bad.

    Raises:
      UserError: an output that is there already, a file of hashes that is none, several sources with `hashes`.
    """
    check_workers(workers)
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}.")
    if output and os.path.exists(output):
        raise UserError(f"{output!r} is there already; choose another --output, or remove it.")
    if hashes:
        data.one("--hashes")
    asked = {name: Asked.of(data, name) for name in data.entries}
    counts: dict[str, collections.Counter[str]] = {}
    checked: dict[str, int] = {}
    with _Lines(output) as lines:
        for name, entry in data.entries.items():
            work = Check(name, entry, asked[name], bool(hashes))
            length = len(work.source) if limit is None else min(limit, len(work.source))
            counts[name], checked[name] = collections.Counter(), length
            with Hashes(hashes, whole=length == len(work.source)) as known:
                for index, reason, digest in _check(work, length, workers):
                    changed = known.take(index, digest)
                    if reason or changed:
                        counts[name][reason or changed] += 1
                        line = {"source": name, "index": index, "reason": reason or changed}
                        lines.write(line)
                counts[name] += collections.Counter({GONE: known.rest()})  # forgets zeros
    return _report(counts, checked)


class Check:
    """Work for `workers.each`: (index, reason or "", hash or "") of some records.

    Args:
      name, entry: of the source.
      asked: what a record must have.
      hashes: whether to hash images.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], asked: "Asked", hashes: bool):
        check_box_format(entry.get("box_format", "xyxy"), f"the source {name!r}")
        self._name, self._entry, self._asked, self._hashes = name, dict(entry), asked, hashes

    @functools.cached_property
    def source(self) -> Any:
        """The source, opened in every process."""
        return open_source(self._entry, self._name)

    def __call__(self, piece: range) -> list[tuple[int, str, str]]:
        """Checks the records of these indices."""
        return [self._one(index) for index in piece]

    def _one(self, index: int) -> tuple[int, str, str]:
        digest = UNREADABLE
        try:
            record = self.source[index]
            if self._hashes:
                digest = hash_images(record.get("image"))
            check(record, self._entry.get("box_format", "xyxy"), self._asked)
            if self._asked.features is not None:
                number = list(self._asked.features.sources).index(self._name)
                sample_id = (number << SOURCE_BITS) + index
                view = View(record, number, self._name, self._entry, sample_id, (0, index, 0))
                self._asked.features(record, view)
        except BadRecord as error:
            return index, str(error), digest
        except UserError:  # the files cannot be reached, which says nothing of the record
            raise
        except Exception as error:  # of a library that read a damaged file, or of somebody's source
            return index, f"cannot be read ({type(error).__name__})", digest
        return index, "", digest

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "source"}


class Asked(NamedTuple):
    """What a record must have.

    Attributes:
      image: whether it needs one.
      text: whether it needs one.
      policy: a caption policy that must find one; None: any text that is not blank will do.
      features: all of a config, to be run on every record, where there are others than text, image and regions.
    """

    image: bool = True
    text: bool = True
    policy: Any = None
    features: Any = None

    @classmethod
    def of(cls, data: Named, name: str) -> "Asked":
        """What is asked of the records of a source: by the config's features, or without a config."""
        if data.config is None:
            section = data.entries[name].get("captions")
            return cls(policy=make_captions(section) if section else None)
        features = Features(data.run())
        text = features.made.get("text")
        policy = text.policy(name) if isinstance(text, Captions) else None
        image = any(isinstance(feature, Image) for feature in features.made.values())
        if all(feature in FIRST for feature in features.made):
            return cls(image, policy is not None, policy)
        features.open()
        return cls(image, policy is not None, policy, features)


def check(record: Mapping[str, Any], box_format: str, asked: Asked = Asked()) -> None:  # noqa: B008
    """Checks one record, whatever a sample would draw of it.

    Args:
      record: a raw record.
      box_format: one of `regions.BOX_FORMATS`.
      asked: what it must have.

    Raises:
      BadRecord: says what is wrong.
    """
    images = record.get("image")
    images = list(images) if isinstance(images, list | tuple) else [images]
    if asked.image and (not images or images[0] is None):
        raise BadRecord("there is no image")
    sizes = [decode(image).size for image in images if image is not None]
    try:
        for text in strings(record.get("text")):
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord("text is not UTF-8") from error
    if asked.policy is not None:
        asked.policy(record, np.random.default_rng(0))
    elif asked.text and not texts_of(record):
        raise BadRecord("text is empty")
    for size in sizes:
        draw_regions(record, box_format, size, WHOLE, _ALL, np.random.default_rng(0))
        if record.get("boxes") is not None and len(record["boxes"]):
            _check_boxes(np.array(record["boxes"], np.float64), box_format, size)


def _check_boxes(boxes_Mx4: np.ndarray, box_format: str, size: tuple[int, int]) -> None:
    if box_format.endswith("pixels"):
        boxes_Mx4 = boxes_Mx4 / np.array([*size, *size], np.float64)
    low, high = boxes_Mx4[:, :2], boxes_Mx4[:, 2:]
    if box_format.startswith("xywh"):
        high = low + high
    if (np.clip(high, 0, 1) <= np.clip(low, 0, 1)).any():
        raise BadRecord(OUTSIDE)


def _check(work: Check, length: int, workers: int) -> Iterator[tuple[int, str, str]]:
    pieces = (range(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))
    for found in each(work, pieces, workers):
        yield from found


def _report(counts: Mapping[str, collections.Counter[str]], checked: Mapping[str, int]) -> int:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, side in (("source", "left"), ("reason", "left"), ("records", "right")):
        table.add_column(column, justify=side, overflow="fold")
    table.add_column("share", justify="right")
    for name, found in counts.items():
        good = checked[name] - sum(n for reason, n in found.items() if reason != GONE)
        for reason, n in [("good", good), *found.most_common()]:
            table.add_row(Text(name), Text(reason), f"{n:,}", f"{n / checked[name]:.2%}")
    console().print(table)
    return 1 if any(map(len, counts.values())) else 0


class _Lines:
    """A file of JSON lines that is there when it is whole."""

    def __init__(self, path: str | None):
        self._path = path
        self._file: TextIO | None = open_text(f"{path}.part") if path else None

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line."""
        if self._file:
            self._file.write(json.dumps(line) + "\n")

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if self._file:
            self._file.close()
            if kind is None:
                Path(f"{self._path}.part").replace(self._path)
