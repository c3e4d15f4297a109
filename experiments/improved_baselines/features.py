"""Captions without their stop words, and with one change of EDA (Wei and Zou 2019): a policy of `features.text`."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.data.captions import make_captions
from clipjax.data.tokenizers.clean import collapse, fix
from clipjax.errors import UserError

# NLTK's English list.
STOP_WORDS = frozenset(
    Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split()
)
SYNONYMS = Path(__file__).with_name(
    "synonyms.tsv"
)  # of the drawings' words; tools/make_synonyms.py makes others


class WeakAndStrong:
    """One weak caption and `strong` strong ones, of what another policy draws.

    Both lose their stop words with probability `stop_words`, if anything is left. A strong one then has one word
    replaced by a synonym, two words exchanged, or each word deleted with probability 0.1 (never all).

    Args:
      captions: section of the policy that gives one caption.
      strong: their number A.
      stop_words: probability of their removal.
      operations: weights of synonym, swap and deletion.
      several: whether every text is a draw of its own from the record, or all are of one caption.
      clean: whether captions are cleaned and in lower case first.
      synonyms: file with a word, a tab and its synonyms with commas between a line.
    """

    def __init__(
        self,
        captions: Mapping[str, Any],
        strong: int = 2,
        stop_words: float = 0.8,
        operations: Sequence[float] = (0.4, 0.4, 0.2),
        several: bool = False,
        clean: bool = False,
        synonyms: str = str(SYNONYMS),
    ):
        self._draw, self.count, self._stop_words = make_captions(captions), 1 + strong, stop_words
        if self._draw.count != 1:
            raise UserError("The captions of WeakAndStrong must be a policy that draws one text.")
        self._edges = np.cumsum(operations) / np.sum(operations)
        self._several, self._clean, self._synonyms = several, clean, synonyms

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> list[str]:
        """Raises BadRecord as the policy within does."""
        one = None if self._several else self._draw(record, rng)
        texts = [(one or self._draw(record, rng))[0] for _ in range(self.count)]
        if self._clean:
            texts = [collapse(fix(text)).lower() for text in texts]
        texts = [self._shortened(text, rng) for text in texts]
        return [texts[0], *(self._changed(text, rng) for text in texts[1:])]

    def _shortened(self, text: str, rng: np.random.Generator) -> str:
        if rng.random() >= self._stop_words:
            return text
        words = re.findall(r"\w+(?:['’-]\w+)*|[^\w\s]+", text)
        return " ".join(w for w in words if w.lower() not in STOP_WORDS) or text

    def _changed(self, text: str, rng: np.random.Generator) -> str:
        operation = (self.synonym, self.swap, self.delete)[
            int(np.searchsorted(self._edges, rng.random(), side="right"))
        ]
        words = text.split()
        return " ".join(operation(words, rng)) if words else text

    def synonym(self, words: list[str], rng: np.random.Generator) -> list[str]:
        """All places of one word that has synonyms, and is no stop word, replaced by one of them."""
        table = read_synonyms(self._synonyms)
        known = sorted({w for w in words if w not in STOP_WORDS and w.lower() in table})
        if not known:
            return words
        word = known[rng.integers(len(known))]
        others = table[word.lower()]
        other = others[rng.integers(len(others))]
        return [other if w == word else w for w in words]

    def swap(self, words: list[str], rng: np.random.Generator) -> list[str]:
        """Two words exchanged."""
        if len(words) < 2:
            return words
        i, j = rng.choice(len(words), 2, replace=False)
        words[i], words[j] = words[j], words[i]
        return words

    def delete(self, words: list[str], rng: np.random.Generator) -> list[str]:
        """Each word left out with probability 0.1; one of them if nothing would be left."""
        kept = [w for w, x in zip(words, rng.random(len(words)), strict=True) if x > 0.1]
        return kept or [words[rng.integers(len(words))]]


@functools.cache
def read_synonyms(path: str) -> dict[str, list[str]]:
    """Word -> its synonyms; UserError if there is no such file."""
    if not Path(path).is_file():
        raise UserError(f"There is no file of synonyms {path!r}; tools/make_synonyms.py makes one.")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {word: others.split(",") for word, others in rows}
