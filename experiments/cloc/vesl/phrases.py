"""VESL's second step: the noun phrases of a caption, which the detector is asked for.

CLOC's Listing 1 (arXiv 2410.02746, appendix C.1): lower-case, cut into words, delete generic web words, tag, take what
the grammar "optional determiner, any adjectives, one or more nouns" matches, drop what has stop-words only, keep the
first 20. Any tagger of Penn Treebank's tags will do, see taggers.py.
"""

from collections.abc import Sequence
from typing import Any

from experiments.cloc.vesl.words import GENERIC_WORDS, STOP_WORDS

GRAMMAR = "NP: {<DT>?<JJ.*>*<NN.*>+}"
MAX_PHRASES = 20


def noun_phrases(caption: str, tagger: Any) -> list[str]:
    """All noun phrases of a caption in their order, the same one as often as it is there.

    Args:
      caption: any text.
      tagger: see taggers.py.

    Returns:
      lower-case phrases, words separated by one space.
    """
    words = [w for w in tagger.tokens(caption.lower()) if w not in GENERIC_WORDS]
    return [" ".join(c) for c in chunks(tagger.tags(words)) if not STOP_WORDS.issuperset(c)]


def queries(captions: Sequence[str], tagger: Any, most: int = MAX_PHRASES) -> tuple[list[str], int]:
    """What the detector is asked for: the first `most` noun phrases of an image's captions.

    A phrase that comes again counts among the first `most`, as in Listing 1, but is asked for once: the detector would
    give both the same scores.

    Args:
      captions: of one image; their phrases follow each other.
      tagger: see taggers.py.
      most: how many phrases are kept.

    Returns:
      (different phrases, how many phrases were beyond `most`).
    """
    found = [phrase for caption in captions for phrase in noun_phrases(caption, tagger)]
    return list(dict.fromkeys(found[:most])), max(0, len(found) - most)


def chunks(tagged: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The words of each part of a sentence that `GRAMMAR` matches, from left to right, each as long as can be.

    Args:
      tagged: (word, tag of Penn Treebank).
    """
    from nltk import RegexpParser

    if not tagged:
        return []
    tree = RegexpParser(GRAMMAR).parse(tagged)
    return [[word for word, _ in part] for part in tree.subtrees(lambda t: t.label() == "NP")]
