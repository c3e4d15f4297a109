"""The training stream: sample i of an endless, shuffled, weighted mixture, a pure function of (seed, i).

Nothing else decides what a sample is: not the process, the worker, the batch size or what was read before. So the
state of the data is one number, the samples seen, and any number of hosts can go on from it.

A raw record, what a source gives for an index, is a dict:

  image     encoded bytes, a uint8 array [H,W,3|4], or a list of such, of which a sample gets one at random
  text      list of captions, of which the caption policy chooses
  language, name, keywords, category, ...   what the source knows

A record that cannot be used (a broken picture, no text) is replaced by another draw that depends only on (seed, i)
and the number of failures, and is counted.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from clipjax.data.augment import augment, check_augment
from clipjax.data.captions import make_captions
from clipjax.data.images import BadRecord, check_fit, decode
from clipjax.data.sources import make_source
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError
from clipjax.registry import wanted

MAX_DRAWS = 20  # failures at one place of the stream before the run is told that the data is broken
SOURCE_BITS = 40  # a sample_id is (number of the source << 40) + index of the record


class Stream:
    """Random access to training samples.

    A sample is a dict of `image` uint8 [S,S,3], `text` int32 [L], `sample_id` int64, `sample_seed` uint32, and for the
    pipeline's own book-keeping `bad` (records that failed here) and `cut` (1 if the text was longer than L tokens).

    Args:
      config: the `data` section.
      preprocess: the `preprocess` section.
      size: side of the pictures.
      tokenizer: makes ids of texts.
      seed: of the run.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        preprocess: Mapping[str, Any],
        size: int,
        tokenizer: Tokenizer,
        seed: int,
    ):
        if not config["sources"]:
            raise UserError(
                "config.data.sources is empty; name at least one, such as {'drawings': {'kind': 'drawings'}}."
            )
        check_fit(preprocess["resize"], preprocess["interpolation"])
        check_augment(config["augment"])
        self.sources = [make_source(entry, name) for name, entry in config["sources"].items()]
        weights = [entry.get("weight", 1.0) for entry in config["sources"].values()]
        for name, weight in zip(config["sources"], weights, strict=True):
            if wanted(1.0, weight) or not 0 < weight < math.inf:
                raise UserError(
                    f"The source {name!r} has the weight {weight!r}, but a weight must be above 0; "
                    "leave out a source that is not to be read."
                )
        self._order = _order([len(s) for s in self.sources], weights, seed)
        self._captions = make_captions(config["captions"])
        self._augment = dict(config["augment"])
        self._interpolation = preprocess["interpolation"]
        self._size, self._tokenizer, self._seed = size, tokenizer, seed

    @property
    def epoch(self) -> int:
        """Records of all sources together."""
        return sum(len(s) for s in self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for draw in range(MAX_DRAWS):
            # A replacement is taken from far ahead in the same order.
            number, record = self._order[index + draw * (1 << 50)]
            rng = np.random.default_rng((self._seed, index, draw))
            try:
                sample = self._sample(self.sources[number][record], rng)
            except BadRecord:
                continue
            return sample | {
                "sample_id": np.int64((number << SOURCE_BITS) + record),
                "sample_seed": _hash32(self._seed, index),
                "bad": np.int32(draw),
            }
        raise UserError(
            f"{MAX_DRAWS} records in a row cannot be used at place {index} of the data; "
            "check the sources with a few records by hand."
        )

    def _sample(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        images = record["image"]
        chosen = images[rng.integers(len(images))] if isinstance(images, list | tuple) else images
        image = augment(decode(chosen), self._size, self._augment, self._interpolation, rng)
        text = self._captions(record, rng)
        ids = self._tokenizer([text])[0]
        # Cutting is only possible where the row is full, so most texts are encoded once.
        full = ids[-1] != self._tokenizer.pad_id
        cut = full and len(self._tokenizer.encode(text)) > len(ids)
        return {"image": image, "text": ids, "cut": np.int32(cut)}


def _order(lengths: list[int], weights: list[float], seed: int) -> grain.MapDataset:
    """Place in the stream -> (source, record): each source shuffled anew every epoch, mixed by weight."""
    parts = [
        grain.MapDataset.range(length)
        .seed(_hash32(seed, number, 7).item())
        .shuffle()
        .repeat()
        .map(lambda record, number=number: (number, record))
        for number, length in enumerate(lengths)
    ]
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _hash32(*numbers: int) -> np.uint32:
    text = ",".join(map(str, numbers)).encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=4).digest(), np.uint32)[0]
