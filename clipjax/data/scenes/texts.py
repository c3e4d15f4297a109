"""The facts of a scene in words, and captions in which exactly one thing is wrong.

English phrases say "the" of everything and have no verb, because names such as "scissors", "bread" or "fog" take no "a"
and not all take "is". Other languages get names only: they have grammars of their own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clipjax.data.scenes import facts

FLIPPED = {"small": "large", "large": "small"}


class Facts(NamedTuple):
    """What is said of a scene's m objects.

    Attributes:
      names: of the objects.
      refs: what each is called here; "left camel" where there are two camels, else the name.
      sizes: "small", "large" or "".
      places: keys of `facts.PLACES`.
      relations: see `facts.relations`.
      english: whether phrases may be made.
    """

    names: Sequence[str]
    refs: Sequence[str]
    sizes: Sequence[str]
    places: Sequence[tuple[int, int]]
    relations: Sequence[facts.Relation]
    english: bool


class Negative(NamedTuple):
    """A wrong caption.

    Attributes:
      text: the caption.
      kind: what was swapped: "object", "size", "place" or "relation".
      of: the place of the right one among the captions.
    """

    text: str
    kind: str
    of: int


def captions(scene: Facts, relation: facts.Relation | None) -> list[str]:
    """Captions of the whole image: its objects, the place of each, one relation if there is any."""
    texts = [_list(scene.refs)]
    if scene.english:
        texts.append(_places(scene.refs, scene.sizes, scene.places))
        if relation:
            texts.append(phrase(scene.refs, relation))
    return texts


def region_texts(scene: Facts, rng: np.random.Generator) -> list[list[str]]:
    """For each object texts that mean it and no other object of the scene."""
    found = []
    for i, (name, ref) in enumerate(zip(scene.names, scene.refs, strict=True)):
        if not scene.english:
            found.append([name])
            continue
        texts = [name, f"a drawing of {name}"] if ref == name else [f"the {ref}"]
        texts.append(f"the {_noun(ref, scene.sizes[i])} {facts.PLACES[scene.places[i]]}")
        mine = [r for r in scene.relations if r[0] == i]
        if mine:
            _, words, j = mine[rng.integers(len(mine))]
            texts.append(phrase(scene.refs, (i, words, j)))
        found.append(texts)
    return found


def phrase(refs: Sequence[str], relation: facts.Relation) -> str:
    """Such as "the camel to the right of the orange"."""
    one, words, other = relation
    return f"the {refs[one]} {words} the {refs[other]}"


def negatives(
    scene: Facts, relation: facts.Relation | None, stranger: str | None, rng: np.random.Generator
) -> list[Negative]:
    """Captions with one thing swapped, so that they are wrong of this scene.

    Args:
      scene: what is right.
      relation: the one of the captions.
      stranger: name of something that is not in the image, nor anything like it; None: there is no such thing.
      rng: chooses what is swapped.
    """
    found = []
    if stranger is not None:
        i = int(rng.integers(len(scene.refs)))
        before = scene.refs[i][: len(scene.refs[i]) - len(scene.names[i])]  # such as "left "
        refs = _replace(scene.refs, i, before + stranger)
        found.append(Negative(_list(refs), "object", 0))
        if scene.english:
            swapped = _places(refs, scene.sizes, scene.places)
            found.append(Negative(swapped, "object", 1))
    if scene.english:
        i = int(rng.integers(len(scene.refs)))
        places = _replace(scene.places, i, facts.opposite(scene.places[i]))
        found.append(Negative(_places(scene.refs, scene.sizes, places), "place", 1))
        sized = [
            i
            for i, (ref, size) in enumerate(zip(scene.refs, scene.sizes, strict=True))
            if _noun(ref, size) != ref
        ]
        if sized:
            i = sized[rng.integers(len(sized))]
            sizes = _replace(scene.sizes, i, FLIPPED[scene.sizes[i]])
            found.append(Negative(_places(scene.refs, sizes, scene.places), "size", 1))
        if relation:
            found.append(
                Negative(phrase(scene.refs, (relation[2], relation[1], relation[0])), "relation", 2)
            )
    return found


def _list(refs: Sequence[str]) -> str:
    return ", ".join(refs)


def _places(refs: Sequence[str], sizes: Sequence[str], places: Sequence[tuple[int, int]]) -> str:
    return ", ".join(
        f"the {_noun(ref, size)} {facts.PLACES[where]}"
        for ref, size, where in zip(refs, sizes, places, strict=True)
    )


def _noun(ref: str, size: str) -> str:
    """Such as "large camel"; a "small airplane" is called so whatever its size."""
    return f"{size} {ref}" if size and not ref.startswith(("small ", "large ")) else ref


def _replace(values: Sequence, index: int, value) -> list:
    return [*values[:index], value, *values[index + 1 :]]
