"""Which objects of a composed scene (docs/scenes.md) a phrase means. Only for scenes: their texts are known.

A text is taken as words, lower-case, without "the", "a" or "an" in front. A phrase means an object

- by its **name**, if it is the name, or words before the name with which a text of this object calls it: "shark", "the
  small shark" (of "the small shark at the bottom"), "left camel" (where there are two);
- by its **head**, if it does so, or if the same holds for the last words of the name's head: "the wheelchair" for
  "motorized wheelchair", "the map" for "map of Japan". The head is what stands before the name's first preposition or
  other word of `ENDS`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

ARTICLES = ("the", "a", "an")
ENDS = frozenset(
    (
        "of",
        "with",
        "on",
        "in",
        "at",
        "behind",
        "and",
        "without",
        "showing",
        "holding",
        "tilted",
        "done",
        "not",
    )
)
LEVELS = ("name", "head")


class Meaning:
    """The objects of one scene.

    Args:
      names: of m objects.
      texts: of each of them, all that it is called (`region_text`).
    """

    def __init__(self, names: Sequence[str], texts: Sequence[str | Sequence[str]]):
        self._names = [_words(n) for n in names]
        self._texts = [
            [_words(t) for t in ([given] if isinstance(given, str) else given)] for given in texts
        ]

    def __call__(self, phrase: str, level: str = "head") -> list[int]:
        """Places of the objects that a phrase means."""
        words = _words(phrase)
        objects = zip(self._names, self._texts, strict=True)
        return [i for i, (name, texts) in enumerate(objects) if _means(words, name, texts, level)]


def meaning_of(record: Mapping[str, Any]) -> Meaning:
    """The objects of a scene's record; of one that VESL has labelled, too, whose own texts have another name there."""
    texts = record.get("source_region_text", record.get("region_text"))
    return Meaning(record["names"], texts)


def _words(text: str) -> list[str]:
    """Lower-case words and signs, however they are spaced: NLTK makes "man's" two words, and names write ’."""
    words = re.findall(r"\w+(?:-\w+)*|[^\w\s]", text.lower())
    return words[1:] if len(words) > 1 and words[0] in ARTICLES else words


def _means(words: list[str], name: list[str], texts: list[list[str]], level: str) -> bool:
    if not words:
        return False
    called = [name] + ([] if level == "name" else _heads(name))
    for noun in called:
        if words[-len(noun) :] != noun:
            continue
        before = words[: -len(noun)]
        # What stands before the noun must be what a text of this object says before its name.
        if not before or any(_inside([*before, *name], text) for text in texts):
            return True
    return False


def _heads(name: list[str]) -> list[list[str]]:
    """The last words of what a name is about: "motorized wheelchair" -> [["wheelchair"]]."""
    end = next((i for i, word in enumerate(name) if word in ENDS and i), len(name))
    return [name[start:end] for start in range(end) if (start, end) != (0, len(name))]


def _inside(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
