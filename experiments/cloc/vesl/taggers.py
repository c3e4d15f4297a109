"""Taggers of English words with Penn Treebank's tags. `--tagger` is a key of `KINDS` or an import path.

A tagger has `load()`, which is called once in every process; `tokens(text)`, the words of a lower-case text; and
`tags(words)`, [(word, tag), ...]. experiments/cloc/vesl/README.md holds them against each other.
"""

import re
from collections.abc import Sequence

from clipjax.errors import UserError

KINDS = {
    "textblob": "experiments.cloc.vesl.taggers:TextBlobTagger",
    "nltk": "experiments.cloc.vesl.taggers:NltkTagger",
    "spacy": "experiments.cloc.vesl.taggers:SpacyTagger",
}

Tagged = list[tuple[str, str]]
NEED = "VESL's phrases need NLTK and TextBlob: pip install 'clipjax[vesl]'."


def tokenize(text: str) -> list[str]:
    """Words as Penn Treebank cuts them, by NLTK's rules; a sentence ends with . ! or ? before white space.

    NLTK's own cutting into sentences is learned, and its data comes with no package.
    """
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return [word for sentence in sentences for word in tokenizer.tokenize(sentence)]


class TextBlobTagger:
    """TextBlob's lexicon of 94,000 words, and Brill's rules for unknown words and for context.

    It is the English tagger of Pattern (De Smedt and Daelemans 2012). TextBlob's own `tags` leave the rules for context
    out, with which fewer nouns are lost (experiments/cloc/vesl/README.md).
    """

    def load(self) -> None:
        """Reads the lexicon that the package ships, once in a process."""
        try:
            from textblob.en import lexicon, parser
        except ImportError as error:
            raise UserError(NEED) from error
        self._parser, self._context = parser, lexicon.context

    def tokens(self, text: str) -> list[str]:
        """See `tokenize`."""
        return tokenize(text)

    def tags(self, words: Sequence[str]) -> Tagged:
        """[(word, tag), ...]."""
        tagged = self._parser.find_tags(list(words))
        return [(word, tag) for word, tag in self._context.apply(tagged)]


class NltkTagger:
    """NLTK's averaged perceptron and its way of cutting text, which is what CLOC used.

    Their data, `averaged_perceptron_tagger_eng` and `punkt_tab`, are no part of the package.
    """

    def load(self) -> None:
        """Raises UserError if NLTK or its data is not there."""
        try:
            from nltk.tag.perceptron import PerceptronTagger
            from nltk.tokenize import NLTKWordTokenizer
            from nltk.tokenize.punkt import PunktTokenizer
        except ImportError as error:
            raise UserError(NEED) from error
        # Objects of our own: what `nltk.pos_tag` uses is kept by the process, whatever NLTK_DATA has become.
        try:
            self._tagger, self._sentences = PerceptronTagger(), PunktTokenizer("english")
        except LookupError as error:
            raise UserError(
                "The tagger 'nltk' needs NLTK's data averaged_perceptron_tagger_eng and punkt_tab, in a folder that "
                "NLTK_DATA names (python -m nltk.downloader fetches them); or choose --tagger=textblob."
            ) from error
        self._words = NLTKWordTokenizer()

    def tokens(self, text: str) -> list[str]:
        """The words of NLTK's `word_tokenize`."""
        sentences = self._sentences.tokenize(text)
        return [word for sentence in sentences for word in self._words.tokenize(sentence)]

    def tags(self, words: Sequence[str]) -> Tagged:
        """The tags of NLTK's `pos_tag`."""
        return self._tagger.tag(list(words))


class SpacyTagger:
    """The tagger of a spaCy pipeline.

    Args:
      package: an installed package or a folder that `spacy.load` takes.
    """

    def __init__(self, package: str = "en_core_web_sm"):
        self._package = package

    def load(self) -> None:
        """Raises UserError if there is no spaCy or no such pipeline."""
        try:
            import spacy

            pipeline = spacy.load(self._package)
        except (ImportError, OSError) as error:
            raise UserError(
                f"The tagger 'spacy' needs spaCy and the pipeline {self._package!r}: {error}."
            ) from error
        if "tagger" not in pipeline.pipe_names:
            raise UserError(f"The spaCy pipeline {self._package!r} has no tagger.")
        self._vocab = pipeline.vocab
        self._parts = [p for n, p in pipeline.pipeline if n in ("tok2vec", "transformer", "tagger")]

    def tokens(self, text: str) -> list[str]:
        """See `tokenize`."""
        return tokenize(text)

    def tags(self, words: Sequence[str]) -> Tagged:
        """[(word, tag), ...]."""
        from spacy.tokens import Doc

        doc = Doc(self._vocab, words=list(words))
        for part in self._parts:
            doc = part(doc)
        return [(token.text, token.tag_) for token in doc]
