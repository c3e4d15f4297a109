"""Training samples: a word of a corpus with the words around it."""

from pathlib import Path
from typing import Any

import numpy as np

from clipjax.errors import UserError


class Windows:
    """Every position of the training sentences of a corpus as tools/build_word_corpus.py writes it.

    A record has `centre`, `context` int32 [2 window] (sentences are padded with UNKNOWN, 0) and `targets`. As in the
    paper each known word of the context is the target of a record of its own, [1]; with `grouped` all of them are in
    one, [2 window] with -1 for none: the same terms of the loss in fewer records. With `positions` P a record has P
    positions from anywhere in the corpus, a fixed permutation of it, as a leading axis of all three: a batch is made
    P times as fast. The last record is filled up with the permutation's first positions.

    Args:
      path: of the file, `corpus.npz`.
      vocabulary: words that the model has.
      window: words on each side.
      grouped: see above.
      positions: see above; None: one position, without an axis. It goes with `grouped`.

    Attributes:
      words: by id.
      centre, part: at each position its word, and which word of a pseudo-word stood there (-1: it is none).
      train, test: positions of training, and those of pseudo-words in held-out sentences.

    Raises:
      UserError: there is no such file, or it has more words than the model.
    """

    def __init__(
        self,
        path: str,
        vocabulary: int,
        window: int = 5,
        grouped: bool = False,
        positions: int | None = None,
    ):
        if not Path(path).is_file():
            make = "python tools/build_word_corpus.py --output=FOLDER"
            raise UserError(f"There is no corpus {path!r}; make one with: {make}.")
        self._read(np.load(path), vocabulary, window, grouped, positions)

    def _read(
        self, corpus: Any, vocabulary: int, window: int, grouped: bool, positions: int | None
    ) -> None:
        tokens, starts, self.words = corpus["tokens"], corpus["starts"], corpus["words"]
        if len(self.words) > vocabulary:
            raise UserError(
                f"The corpus has {len(self.words)} words, but the model {vocabulary}; set config.model.vocabulary and "
                "the `vocabulary` of its sources to one number."
            )
        if positions is not None and (positions < 1 or not grouped):
            raise UserError(
                f"A record can have several positions only with grouped=True, and at least 1, not {positions}."
            )
        self._grouped, self._window = grouped, window
        self._around = np.delete(np.arange(-window, window + 1), window)
        # In one array, with UNKNOWN between the sentences.
        sentence = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        self._begins = starts + window * np.arange(1, len(starts) + 1)
        at = np.arange(len(tokens)) + window * (sentence + 1)
        self.centre = np.zeros(self._begins[-1], np.int32)
        self.part, self._sentence = np.full((2, len(self.centre)), -1, np.int32)
        self.centre[at], self.part[at], self._sentence[at] = tokens, corpus["part"], sentence
        targets = (self.contexts(at) > 0).sum(1)
        held_out = corpus["held_out"][sentence]
        trained = ~held_out & (targets > 0)
        self.train, self._ends = at[trained], np.cumsum(targets[trained])
        self.test = at[held_out & (corpus["part"] >= 0)]
        self._at = self.train
        if positions is not None:
            rows = -(-len(self.train) // positions)
            mixed = np.random.default_rng(0).permutation(self.train)
            self._at = np.resize(mixed, (rows, positions))

    def contexts(self, at_N: np.ndarray, whole: bool = False) -> np.ndarray:
        """Words around positions, int32 [N, 2 window]; or of their `whole` sentences, themselves too, then -1."""
        if not whole:
            return self.centre[at_N[:, None] + self._around]
        begin_N = self._begins[self._sentence[at_N]]
        length_N = self._begins[self._sentence[at_N] + 1] - self._window - begin_N
        steps = np.arange(length_N.max())
        inside = steps < length_N[:, None]
        return np.where(inside, self.centre[np.where(inside, begin_N[:, None] + steps, 0)], -1)

    def __len__(self) -> int:
        return len(self._at) if self._grouped else int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = index if self._grouped else int(np.searchsorted(self._ends, index, "right"))
        at = self._at[row]
        context = self.centre[at[..., None] + self._around]
        targets = np.where(context > 0, context, -1)
        if not self._grouped:
            targets = targets[targets > 0][index - self._ends[row], None]
        return {"centre": self.centre[at], "context": context, "targets": targets}


class Planted(Windows):
    """Sentences of ten words of one of two topics; the topics share no word but 1, which is a pseudo-word.

    Args:
      sentences: how many; every fifth is held out.
      words: of a topic, the pseudo-word among them; the vocabulary is twice that.
      window, grouped, positions: as above.
    """

    def __init__(
        self,
        sentences: int = 200,
        words: int = 8,
        window: int = 5,
        grouped: bool = False,
        positions: int | None = None,
    ):
        rng = np.random.default_rng(0)
        topic_Sx1 = rng.integers(2, size=(sentences, 1))
        word_SxL = rng.integers(words, size=(sentences, 10))  # 0 is the pseudo-word
        ids = np.where(word_SxL > 0, 1 + topic_Sx1 * (words - 1) + word_SxL, 1)
        corpus = {
            "tokens": ids.ravel(),
            "starts": np.arange(sentences + 1) * 10,
            "words": np.arange(2 * words).astype(str),
            "part": np.where(word_SxL > 0, -1, topic_Sx1).ravel(),
            "held_out": np.arange(sentences) % 5 == 0,
        }
        self._read(corpus, 2 * words, window, grouped, positions)
