"""Source of training samples: a word of a corpus with the words around it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.errors import UserError


class Windows:
    """Every position of the training sentences of a corpus as tools/build_word_corpus.py writes it.

    A record has `centre`, `context` int32 [2 window] (sentences are padded with UNKNOWN, 0), and `targets`: the words of
    the context that are known. As in the paper each is a record of its own, `targets` [1]; or, with `grouped`, all of a
    position are one record, [2 window], with -1 for none: the same terms of the loss, a tenth of the records.

    Args:
      path: of the file.
      vocabulary: words that the model has.
      window: words on each side.
      grouped: see above.

    Attributes:
      train: positions of training, `test`: those of pseudo-words in held-out sentences; for `contexts`.
      centre, part: word at each position, and which word of a pseudo-word stood there (-1: it is none).
      words: by id.

    Raises:
      UserError: the file is not there, or has more words than the model.
    """

    def __init__(self, path: str, vocabulary: int, window: int = 5, grouped: bool = False):
        if not Path(path).is_file():
            raise UserError(
                f"There is no corpus {path!r}; make one with: python tools/build_word_corpus.py --output=FOLDER."
            )
        self._set(np.load(path), vocabulary, window, grouped)

    def _set(self, corpus: Any, vocabulary: int, window: int, grouped: bool) -> None:
        tokens, starts, self.words = corpus["tokens"], corpus["starts"], corpus["words"]
        if len(self.words) > vocabulary:
            raise UserError(
                f"The corpus has {len(self.words)} words, but the model {vocabulary}; set config.model.vocabulary and "
                "the sources' to the same number."
            )
        self._grouped = grouped
        sentence = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        places = np.arange(len(tokens)) + window * (sentence + 1)  # UNKNOWN between the sentences
        length = len(tokens) + window * len(starts)
        self.centre, self.part = np.zeros(length, np.int32), np.full(length, -1, np.int8)
        self._sentence = np.full(length, -1, np.int32)
        self.centre[places], self.part[places] = tokens, corpus["part"]
        self._sentence[places] = sentence
        self._begins = starts + window * (np.arange(len(starts)) + 1)
        self._around = np.delete(np.arange(-window, window + 1), window)
        held_out = corpus["held_out"][sentence]
        known = sum((self.centre[places + step] > 0).astype(int) for step in self._around)
        self.train = places[~held_out & (known > 0)]
        self.test = places[held_out & (corpus["part"] >= 0)]
        self._ends = np.cumsum(known[~held_out & (known > 0)])

    def contexts(self, places_N: np.ndarray, whole: bool = False) -> np.ndarray:
        """The words around positions, int32 [N, 2 window]; or `whole`: their sentences, themselves included, padded
        with -1.
        """
        if not whole:
            return self.centre[places_N[:, None] + self._around]
        sentence = self._sentence[places_N]
        begin, end = self._begins[sentence], self._begins[sentence + 1] - len(self._around) // 2
        steps = np.arange((end - begin).max())
        inside = steps < (end - begin)[:, None]
        return np.where(inside, self.centre[np.where(inside, begin[:, None] + steps, 0)], -1)

    def __len__(self) -> int:
        return len(self.train) if self._grouped else int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = index if self._grouped else int(np.searchsorted(self._ends, index, "right"))
        place = self.train[row]
        context = self.centre[place + self._around]
        if self._grouped:
            targets = np.where(context > 0, context, -1)
        else:
            targets = context[context > 0][index - self._ends[row], None]
        return {"centre": self.centre[place], "context": context, "targets": targets}


class Planted(Windows):
    """Sentences of one of several topics with words of their own, and pseudo-words of a word from each of two topics.

    Args:
      sentences: how many; a fifth is held out.
      topics: how many, each with `words` words; an even number.
      window, grouped: as above.
      seed: of the draw.
    """

    def __init__(
        self,
        sentences: int = 500,
        topics: int = 2,
        words: int = 10,
        window: int = 5,
        grouped: bool = False,
        seed: int = 0,
    ):
        rng = np.random.default_rng(seed)
        topic_S = rng.integers(topics, size=sentences)
        # Word 0 of a topic is half of a pseudo-word, which the topics 2 i and 2 i + 1 share.
        word_SxL = rng.integers(words, size=(sentences, 2 * window))
        half = word_SxL == 0
        ids = topics // 2 + 1 + topic_S[:, None] * (words - 1) + word_SxL - 1
        ids = np.where(half, 1 + topic_S[:, None] // 2, ids)
        part = np.where(half, topic_S[:, None] % 2, -1)
        corpus = {
            "tokens": ids.ravel().astype(np.int32),
            "starts": np.arange(sentences + 1) * 2 * window,
            "words": np.arange(self.vocabulary(topics, words)).astype(str),
            "part": part.ravel().astype(np.int8),
            "held_out": np.arange(sentences) % 5 == 0,
        }
        self._set(corpus, len(corpus["words"]), window, grouped)

    @staticmethod
    def vocabulary(topics: int, words: int) -> int:
        """Words of such a corpus, UNKNOWN among them."""
        return 1 + topics // 2 + topics * (words - 1)
