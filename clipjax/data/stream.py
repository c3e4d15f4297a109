"""The training stream: sample i of an endless, shuffled, weighted mixture, a pure function of (seed, i).

Nothing else decides what a sample is: not the process, the worker, the batch size or what was read before. So the
state of the data is one number, the samples seen, and any number of hosts can go on from it.

A raw record, what a source gives for an index, is a dict:

  image     encoded bytes, a uint8 array [H,W,3|4], or a list of such, of which a sample gets one at random
  text      list of captions, of which the caption policy chooses
  language  a tag such as "en"
  boxes     [m,4] numbers, and `region_text`, m strings or lists of strings; see clipjax/data/regions.py
  name, keywords, category, ...   what else the source knows

A record that cannot be used (a broken picture, no text) or that a filter turns down is replaced by another draw from
the same source, which depends only on (seed, i) and the number of failures, and is counted with its reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.data.augment import augment, check_augment
from clipjax.data.bad import REASONS, BadRecord
from clipjax.data.captions import make_captions
from clipjax.data.filters import make_filter
from clipjax.data.images import check_fit
from clipjax.data.order import Order, check_weight, hash32
from clipjax.data.picture import Picture
from clipjax.data.regions import check_box_format, check_regions, draw_regions
from clipjax.data.sources import make_source
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError

# At one place of the stream, before the run is told: broken records, and records that a filter turns down.
MAX_DRAWS, MAX_FILTERED = 20, 1000
SOURCE_BITS = 40  # a sample_id is (number of the source << 40) + index of the record

# What is counted for each sample, in the order of its `counts`.
COUNTERS = ("cut", "filtered", *(f"bad/{reason}" for reason in REASONS))


class Stream:
    """Random access to training samples.

    A sample is a dict of `image` uint8 [S,S,3], `text` int32 [L] or [K,L], `sample_id` int64, `sample_seed` uint32;
    with regions `boxes`, `region_text` and `region_mask`; with languages `language` (clipjax/fields.py has them all);
    and for the pipeline's own book-keeping `counts` int32 [len(COUNTERS)]: texts that were cut, records that a filter
    turned down, and records that could not be used, by reason.

    Args:
      config: the `data` section.
      preprocess: the `preprocess` section.
      size: side of the pictures.
      tokenizer: makes ids of texts.
      seed: of the run.
      region_tokenizer: makes ids of regions' texts; None: `tokenizer` does.

    Raises:
      UserError: settings that mean nothing, or sources that disagree on the number of texts.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        preprocess: Mapping[str, Any],
        size: int,
        tokenizer: Tokenizer,
        seed: int,
        region_tokenizer: Tokenizer | None = None,
    ):
        entries = config["sources"]
        if not entries:
            raise UserError(
                "config.data.sources is empty; name at least one, such as {'drawings': {'kind': 'drawings'}}."
            )
        check_fit(**preprocess)
        check_augment(config["augment"])
        check_regions(config["regions"])
        for name, entry in entries.items():
            if not check_weight(entry.get("weight", 1.0)):
                raise UserError(
                    f"The source {name!r} has the weight {entry['weight']!r}, but a weight must be above 0; "
                    "leave out a source that is not to be read."
                )
            check_box_format(entry.get("box_format", "xyxy"), f"the source {name!r}")
        self.names = list(entries)
        self.sources = [make_source(entry, name) for name, entry in entries.items()]
        weights = [entry.get("weight", 1.0) for entry in entries.values()]
        windows = [_window(entry.get("window"), name) for name, entry in entries.items()]
        self.order = Order([len(s) for s in self.sources], weights, seed, windows)
        self._captions = [
            make_captions(e.get("captions") or config["captions"]) for e in entries.values()
        ]
        self.texts = _one_count(self.names, self._captions)
        self._filters = [make_filter(e.get("filter"), name) for name, e in entries.items()]
        self._box_formats = [e.get("box_format", "xyxy") for e in entries.values()]
        self._regions = dict(config["regions"])
        self._languages = {tag: n for n, tag in enumerate(config["languages"])}
        self._augment, self._preprocess = dict(config["augment"]), dict(preprocess)
        self._size, self._tokenizer, self._seed = size, tokenizer, seed
        self._region_tokenizer = region_tokenizer or tokenizer

    @property
    def epoch(self) -> int:
        """Records of all sources together."""
        return sum(len(s) for s in self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        counts = np.zeros(len(COUNTERS), np.int32)
        bad = draw = 0
        while bad < MAX_DRAWS and draw - bad < MAX_FILTERED:
            source, number = self.order.draw(index, draw)
            rng = np.random.default_rng((self._seed, index, draw))
            draw += 1
            try:
                record = self.sources[source][number]
                wanted = self._filters[source]
                if wanted is not None and not wanted(record):
                    counts[COUNTERS.index("filtered")] += 1
                    continue
                sample, cut = self.sample(source, record, rng)
            except BadRecord as error:
                counts[len(COUNTERS) - len(REASONS) + error.number] += 1
                bad += 1
                continue
            counts[COUNTERS.index("cut")] += cut
            return sample | {
                "sample_id": np.int64((source << SOURCE_BITS) + number),
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
            f"({reasons}); look at it with: clipjax data verify."
        )

    def sample(
        self, source: int, record: Mapping[str, Any], rng: np.random.Generator
    ) -> tuple[dict[str, Any], int]:
        """What is learnt from one record of a source, and how many of its texts were cut.

        Raises:
          BadRecord: it cannot be used.
        """
        texts = self._captions[source](record, rng)  # before the picture, which costs more
        images = record["image"]
        several = isinstance(images, list | tuple)
        if several and not images:
            raise BadRecord("there is no image")
        picture = Picture(images[rng.integers(len(images))] if several else images)
        pixels, geometry = augment(picture, self._size, self._augment, self._preprocess, rng)
        ids_KxL, cut = _encode(self._tokenizer, texts)
        sample: dict[str, Any] = {
            "image": pixels,
            "text": ids_KxL if self.texts > 1 else ids_KxL[0],
        }
        if self._languages:
            tag = record.get("language")
            sample["language"] = np.int32(self._languages.get(tag, -1))
        if self._regions["count"]:
            found, texts = draw_regions(
                record, self._box_formats[source], picture.size, geometry, self._regions, rng
            )
            regions, more = self._pad_regions(found, texts)
            sample |= regions
            cut += more
        return sample, cut

    def _pad_regions(
        self, boxes_Nx4: np.ndarray, texts: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], int]:
        """The batch's fields of n regions, filled up to M with zeros and padding."""
        count, n = self._regions["count"], len(texts)
        boxes_Mx4 = np.zeros((count, 4), np.float32)
        boxes_Mx4[:n] = boxes_Nx4
        tokenizer, cut = self._region_tokenizer, 0
        ids_MxL = np.full((count, tokenizer.length), tokenizer.pad_id, np.int32)
        if n:
            ids_MxL[:n], cut = _encode(tokenizer, texts)
        return {
            "boxes": boxes_Mx4,
            "region_text": ids_MxL,
            "region_mask": np.arange(count) < n,
        }, cut


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Ids int32 [n,L], and how many texts were longer than that."""
    ids_NxL, cut_N = tokenizer.encode_rows(texts)
    return ids_NxL, int(cut_N.sum())


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


def _one_count(names: Sequence[str], policies: Sequence[Any]) -> int:
    """The number of texts K, which all sources must share."""
    counts = {policy.count for policy in policies}
    if len(counts) > 1:
        each = ", ".join(f"{n} {p.count}" for n, p in zip(names, policies, strict=True))
        raise UserError(
            f"The caption policies of a run's sources must give as many texts a sample; here they give: {each}."
        )
    return counts.pop()
