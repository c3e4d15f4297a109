"""Scenes with a raw text like the web's, which may be another scene's, and a caption that tells what is there."""

import functools
import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np

from clipjax.data.drawings import Drawings
from clipjax.data.sources import make_source
from clipjax.errors import UserError


class RawAndSynthetic:
    """The records of a source of scenes, with more fields: functions of (seed, index) and the scenes alone.

      `raw`        one keyword of one object; of another scene's in `share` of the records
      `synthetic`  the list of the scene's objects, as a captioner would answer "What does the image describe?"
      `keywords`   all keywords of all objects: what `raw` could rightly be
      `exchanged`  whether `raw` is none of them

    Those that exchange go round in a ring: each has the raw text of the next, so a text is there as often as without.

    Args:
      scenes: entry of the source (clipjax/data/scenes, or files of such scenes).
      share: of records whose raw text is another's.
      seed: of the keywords, and of who exchanges.

    Raises:
      UserError: a share outside [0, 1].
    """

    def __init__(self, scenes: Mapping[str, Any], share: float = 0.0, seed: int = 0):
        if not 0 <= share <= 1:
            raise UserError(f"The share of raw texts exchanged must be from 0 to 1, not {share!r}.")
        self.scenes, self.seed = make_source(scenes, "scenes"), seed
        order = np.random.default_rng(seed).permutation(len(self.scenes))
        ring = order[: round(share * len(order))]
        self._next = dict(zip(ring.tolist(), np.roll(ring, -1).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = range(len(self))[operator.index(index)]
        record, other = self.scenes[index], self._next.get(index, index)
        raw = self._raw(other, record if other == index else self.scenes[other])
        words = [word for concept in record["concepts"] for word in keywords_of()[concept]]
        more = {"raw": raw, "synthetic": record["text"][0], "keywords": list(dict.fromkeys(words))}
        return record | more | {"exchanged": raw not in words}

    def _raw(self, index: int, record: Mapping[str, Any]) -> str:
        rng = np.random.default_rng((self.seed, index))
        words = keywords_of()[record["concepts"][rng.integers(len(record["concepts"]))]]
        return words[rng.integers(len(words))]


@functools.cache
def keywords_of() -> dict[int, list[str]]:
    """Concept -> its English keywords; of the few that have none, the name."""
    drawings = Drawings("all", group="concept")
    rows = [drawings[i] for i in range(len(drawings))]
    words = {r["concept"]: [k for k in r["keywords"] if k != r["name"]] for r in rows}
    return {r["concept"]: words[r["concept"]] or [r["name"]] for r in rows}
