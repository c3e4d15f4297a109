"""The training stream: sample i of an endless, ordered mixture, a pure function of (seed, i).

Nothing else decides what a sample is: not the process, the worker, the batch size or what was read before. So the
state of the data is one number, the samples seen, and any number of hosts can go on from it. (An order that fills
batches with groups needs to know their size, and is a function of it, too.)

A raw record, what a source gives for an index, is a dict:

  image     encoded bytes, a uint8 array [H,W,3|4], or a list of such, of which a sample gets one at random; None or no
            key where there is none
  text      list of captions, of which the caption policy chooses
  language  a tag such as "en"
  boxes     [m,4] numbers, and `region_text`, m strings or lists of strings; see clipjax/data/regions.py
  name, keywords, category, ...   what else the source knows: any feature may read it

Which record stands at place i is the order's matter (clipjax/data/orders), what becomes of it the features'
(clipjax/data/features). A record that cannot be used (a broken image, no text) or that a filter turns down is replaced
by another one, which depends only on (seed, i) and the number of failures, and is counted with its reason.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipjax.data.bad import REASONS, BadRecord
from clipjax.data.features import Features, View
from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.filters import make_filter
from clipjax.data.orders import make_order
from clipjax.data.orders.records import Records, check_weight, hash32
from clipjax.data.regions import check_box_format
from clipjax.data.sources import make_source
from clipjax.errors import UserError

# At one place of the stream, before the run is told: broken records, and records that a filter turns down.
MAX_DRAWS, MAX_FILTERED = 20, 1000

# What is counted for each sample, in the order of its `counts`.
COUNTERS = ("cut", "filtered", *(f"bad/{reason}" for reason in REASONS))


class Stream:
    """Random access to training samples.

    A sample is a dict of the fields of all features (clipjax/fields.py has the library's), `sample_id` int64,
    `sample_seed` uint32, and for the pipeline's own book-keeping `counts` int32 [len(COUNTERS)]: texts that were cut,
    records that a filter turned down, and records that could not be used, by reason.

    It can be pickled, for data workers.

    Args:
      config: of the run; `data`, `model`, `tokenizer`, `preprocess`, `seed` and `batch_size` are read.

    Attributes:
      names: of the sources.
      sources: them themselves.
      features: all of them, opened.
      order: which record stands where.

    Raises:
      UserError: settings that mean nothing, or files that cannot be used.
    """

    def __init__(self, config: Mapping[str, Any]):
        data = config["data"]
        entries = {name: dict(entry) for name, entry in data["sources"].items()}
        if not entries:
            raise UserError(
                "config.data.sources is empty; name at least one, such as {'drawings': {'kind': 'drawings'}}."
            )
        self.features = Features(config)
        for name, entry in entries.items():
            if not check_weight(entry.get("weight", 1.0)):
                raise UserError(
                    f"The source {name!r} has the weight {entry['weight']!r}, but a weight must be above 0; "
                    "leave out a source that is not to be read."
                )
            check_box_format(entry.get("box_format", "xyxy"), f"the source {name!r}")
        self.names = list(entries)
        self.sources = [make_source(entry, name) for name, entry in entries.items()]
        self._entries = [
            {k: entry[k] for k in ("captions", "box_format") if k in entry}
            for entry in entries.values()
        ]
        self._seed = config["seed"]
        records = Records(
            self.names,
            self.sources,
            [entry.get("weight", 1.0) for entry in entries.values()],
            [_window(entry.get("window"), name) for name, entry in entries.items()],
            self._seed,
            config["batch_size"],
        )
        self.order = make_order(data["order"], records)
        self._filters = [make_filter(e.get("filter"), name) for name, e in entries.items()]
        self.features.open()

    @property
    def epoch(self) -> int:
        """Records of all sources together."""
        return sum(len(s) for s in self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        counts = np.zeros(len(COUNTERS), np.int32)
        bad = draw = 0
        detail = ""
        while bad < MAX_DRAWS and draw - bad < MAX_FILTERED:
            source, number = self._draw(index, draw)
            key = (self._seed, index, draw)
            draw += 1
            try:
                record = self.sources[source][number]
                wanted = self._filters[source]
                if wanted is not None and not wanted(record):
                    counts[COUNTERS.index("filtered")] += 1
                    continue
                view = self.view(source, number, record, key)
                sample = self.features(record, view)
            except BadRecord as error:
                counts[len(COUNTERS) - len(REASONS) + error.number] += 1
                bad += 1
                detail = error.detail or detail
                continue
            counts[COUNTERS.index("cut")] += view.cut
            return sample | {
                "sample_id": np.int64(view.sample_id),
                "sample_seed": hash32(self._seed, index),
                "counts": counts,
            }
        if bad < MAX_DRAWS:
            raise UserError(
                f"The filter of source {self.names[source]!r} turned down {MAX_FILTERED} records at place {index} of "
                "the data; loosen it, or write those that pass once, with: clipjax data convert --filter."
            )
        reasons = ", ".join(r for r, n in zip(REASONS, counts[-len(REASONS) :], strict=True) if n)
        raise UserError(
            f"{MAX_DRAWS} records of source {self.names[source]!r} cannot be used at place {index} of the data "
            f"({reasons}{f'; the last: {detail}' if detail else ''}); look at it with: clipjax data verify."
        )

    def view(
        self, source: int, number: int, record: Mapping[str, Any], key: tuple[int, ...]
    ) -> View:
        """What the features of one sample share: `stream.features(record, view)` are its fields.

        Args:
          source, number: of the record.
          record: the raw record.
          key: (seed, place, number of the draw), from which all randomness comes.
        """
        sample_id = (source << SOURCE_BITS) + number
        return View(record, source, self.names[source], self._entries[source], sample_id, key)

    def _draw(self, place: int, number: int) -> tuple[int, int]:
        """(source, record) that the order gives, checked."""
        try:
            source, record = self.order.draw(place, number)
            there = 0 <= source < len(self.sources) and 0 <= record < len(self.sources[source])
        except (TypeError, ValueError) as error:
            raise UserError(f"{_what(self.order)} fails at place {place}: {error}.") from error
        if not there:
            raise UserError(
                f"{_what(self.order)} gives record {record} of source {source} at place {place}, which is not there."
            )
        return int(source), int(record)


def _what(order: Any) -> str:
    return f"The order {type(order).__module__}:{type(order).__qualname__}"


def _window(setting: Any, name: str) -> tuple[int, int] | None:
    """(block, window) of a source's entry."""
    if setting is None:
        return None
    pair = tuple(setting) if isinstance(setting, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(
            f"The window of source {name!r} must be (records of a block, records of a window), such as (1000, 10000), "
            f"not {setting!r}."
        )
    return pair
