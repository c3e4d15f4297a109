"""The source: scene i, composed anew whenever it is asked for."""

import io
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from PIL import Image

from clipjax.data.bad import BadRecord
from clipjax.data.drawings import TRAIN_STYLES, Drawings
from clipjax.data.drawings import categories as all_categories
from clipjax.data.scenes import backgrounds as grounds
from clipjax.data.scenes import checks, facts, texts
from clipjax.data.scenes.layout import Layout, Object
from clipjax.data.scenes.sprites import Concept, concepts, confusable, sprite, unlike
from clipjax.errors import UserError

TRIES = 8  # places for a sprite before it is given up
SPARE = 4  # more things than wanted that are tried, in case some find no place


class Scenes:
    """Random-access source of scenes with exact regions. Scene i is a function of (seed, i) and the settings alone.

    Drawings are laid at random over a background. No thing is there twice, and none together with another that its
    name could mean ("cat" and "cat face"). What finds no place is left out, so a scene may have fewer objects than
    were wanted; the objects that there are meet `max_occlusion` and show at least 24 pixels.

    A record is a dict, its m objects in the order from back to front:
      `image`           uint8 [H,W,3]; bytes of a JPEG with `jpeg`
      `text`            captions: the objects' names, the place of each, one relation if there is any
      `language`        the locale
      `boxes`           float32 [m,4], x1, y1, x2, y2 as fractions of the image: tight bounds of the mask
      `boxes_full`      float32 [m,4]: bounds of the whole object, hidden parts included, clipped to the image
      `masks`           bool [m,H,W]: visible pixels (alpha of at least one half); disjoint
      `region_text`     m lists of texts, each of which means this object and no other
      `names`, `concepts`, `styles`  m strings, m ints (as in `Drawings`), m strings
      `occlusion`       float32 [m]: share of the object's pixels that is hidden or outside the image
      `background`      the photograph's name, or "plain", "gradient", "noise"
      `triples`         all relations of pairs, [i, words, j]
      `relations`       the same as English phrases; without phrases empty
      `hard_negatives`  captions of this scene with exactly one thing swapped, and so wrong
      `negative_kinds`  for each "object", "size", "place" or "relation"
      `negative_of`     for each the index in `text` of the right caption

    A record whose objects all failed to fit raises `BadRecord`, which the pipeline replaces and counts.

    Args:
      length: number of scenes.
      seed: of all of them.
      size: (W, H) of the images, or the side of square ones.
      objects: fewest and most objects wanted.
      scale: lowest and highest longer side of an object before it is rotated, as shares of the image's shorter side;
        log-uniform.
      split: concepts, as in `Drawings`: "seen", "unseen", "all".
      styles: of the drawings, as in `Drawings`.
      locale: language of the texts; other than "en": names only.
      backgrounds: "photos", "test_photos" (never among the former), "plain", "gradient", "noise", names of
        photographs, or several of these, each as likely.
      max_occlusion: largest share of an object that is hidden or outside the image, below 1.
      flip: probability of a mirrored drawing.
      rotate: largest angle in degrees, both ways. Clocks, moons and other drawings that would then be called wrong
        are neither flipped nor rotated.
      duplicates: probability of a scene in which two objects have the same name, told apart as "the smaller camel" and
        "the larger camel", or as the left, right, upper, lower one. English only.
      names_only: no texts that speak of size, place or relation, as in locales other than "en": for images that are
        flipped or cropped afterwards, whose places change.
      categories: of the drawings' five, those whose things are shown; None: all.
      jpeg: quality from 1 to 100; None: arrays.

    Raises:
      UserError: a setting that cannot be, or photographs without scikit-image.
    """

    def __init__(
        self,
        length: int = 100_000,
        seed: int = 0,
        size: Sequence[int] | int = (128, 128),
        objects: Sequence[int] = (1, 6),
        scale: Sequence[float] = (0.12, 0.5),
        split: Literal["seen", "unseen", "all"] = "seen",
        styles: Sequence[str] | str = TRAIN_STYLES,
        locale: str = "en",
        backgrounds: Sequence[str] | str = "photos",
        max_occlusion: float = 0.5,
        flip: float = 0.5,
        rotate: float = 15.0,
        duplicates: float = 0.0,
        names_only: bool = False,
        categories: Sequence[str] | str | None = None,
        jpeg: int | None = None,
    ):
        self.length = checks.whole("length", length, 1)
        self.seed = checks.whole("seed", seed, 0)
        self.size = checks.size(size)
        self.objects = checks.objects(objects)
        self.scale = checks.scale(scale, self.size)
        self._drawings = Drawings(split, styles)
        self.split, self.styles = split, self._drawings.styles
        if not isinstance(locale, str):
            raise UserError(
                f"Scenes are in one language: 'locale' must be such as 'en', not {locale!r}."
            )
        (self.locale,) = Drawings(split, styles, locales=locale).locales
        self.backgrounds = grounds.check(backgrounds)
        self.max_occlusion = checks.number("max_occlusion", max_occlusion, 0, 0.95)
        self.flip = checks.number("flip", flip, 0, 1)
        self.rotate = checks.number("rotate", rotate, 0, 45)
        self.duplicates = checks.number("duplicates", duplicates, 0, 1)
        self.jpeg = None if jpeg is None else checks.whole("jpeg", jpeg, 1, 100)
        self.names_only = checks.flag("names_only", names_only)
        self.categories = checks.among("categories", categories, all_categories())
        if self.duplicates and not self._english:
            raise UserError(
                "Scenes tell things of the same name apart by English phrases: "
                "set duplicates=0, or locale='en' and names_only=False."
            )

    @property
    def _english(self) -> bool:
        """Whether there are phrases, and not only names."""
        return self.locale == "en" and not self.names_only

    def __len__(self) -> int:
        return self.length

    @property
    def settings(self) -> dict[str, Any]:
        """What `Scenes(**settings)` makes the same scenes of."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def __repr__(self) -> str:
        return f"Scenes({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = range(len(self))[operator.index(index)]
        rng = np.random.default_rng((self.seed, index))
        background, pixels_HxWx3 = grounds.draw(self.backgrounds, self.size, rng)
        shown = grounds.shown(background)
        pool = [
            c
            for c in concepts(self.split, self.styles, self.locale)
            if c.category in self.categories and c.english not in shown
        ]
        layout, placed = self._compose(pool, rng)
        if not placed:
            raise BadRecord("no object fits into the scene")

        boxes, boxes_full = layout.boxes(), layout.boxes_full()
        scene = self._facts(placed, boxes.tolist(), boxes_full.tolist(), layout)
        relation = scene.relations[rng.integers(len(scene.relations))] if scene.relations else None
        negatives = texts.negatives(scene, relation, _stranger(placed, pool, rng), rng)
        image = layout.paint(pixels_HxWx3)
        return {
            "image": image if self.jpeg is None else _encode(image, self.jpeg),
            "text": texts.captions(scene, relation),
            "language": self.locale,
            "boxes": boxes,
            "boxes_full": boxes_full,
            "masks": layout.masks(),
            "region_text": texts.region_texts(scene, rng),
            "names": list(scene.names),
            "concepts": [thing.concept.number for thing in placed],
            "styles": [thing.style for thing in placed],
            "occlusion": layout.occlusion(),
            "background": background,
            "triples": [list(triple) for triple in scene.relations],
            "relations": [texts.phrase(scene.refs, r) for r in scene.relations if scene.english],
            "hard_negatives": [n.text for n in negatives],
            "negative_kinds": [n.kind for n in negatives],
            "negative_of": [n.of for n in negatives],
        }

    def _compose(
        self, pool: Sequence[Concept], rng: np.random.Generator
    ) -> tuple[Layout, list["_Placed"]]:
        """Lays things over each other until there are as many as wanted, or none is left to try."""
        wanted = int(rng.integers(self.objects[0], self.objects[1] + 1))
        queue = [pool[i] for i in rng.permutation(len(pool))[: wanted + SPARE]]
        if wanted > 1 and rng.random() < self.duplicates:
            queue.insert(1, queue[0])
        layout, placed = Layout.empty(self.size), []
        for concept in queue:
            if len(placed) == wanted:
                break
            twin = next((i for i, p in enumerate(placed) if p.concept == concept), None)
            if twin is None and any(confusable(p.concept, concept) for p in placed):
                continue
            record = self._drawings[concept.rows[rng.integers(len(concept.rows))]]
            larger = self._add(layout, concept, record["image"][0], placed, rng)
            if larger is not None:
                layout = larger
                placed.append(_Placed(concept, record["style"]))
        return layout, placed

    def _add(
        self,
        layout: Layout,
        concept: Concept,
        tile: np.ndarray,
        placed: Sequence["_Placed"],
        rng: np.random.Generator,
    ) -> Layout | None:
        """The layout with one more thing at the first place where it may lie; None if none of `TRIES` serves."""
        longest = min(self.size) * np.exp(rng.uniform(*np.log(self.scale)))
        flip, angle = rng.random() < self.flip, rng.uniform(-self.rotate, self.rotate)
        if concept.oriented:
            flip, angle = False, 0.0
        pixels = sprite(tile, max(1, round(longest)), flip, angle)
        limits = []  # of left and of top; a part may be outside the image
        for side, length in zip(self.size, pixels.shape[1::-1], strict=True):
            over = int(self.max_occlusion * length / 2)
            limits.append(sorted((-over, side - length + over)))
        names = [p.concept.number for p in placed] + [concept.number]
        for _ in range(TRIES):
            left, top = (int(rng.integers(low, high, endpoint=True)) for low, high in limits)
            found = layout.add(Object(pixels, left, top), self.max_occlusion)
            if found is not None and _distinct(names, found):
                return found
        return None

    def _facts(
        self, placed: Sequence["_Placed"], boxes: list, full: list, layout: Layout
    ) -> texts.Facts:
        names = [thing.concept.name for thing in placed]
        refs, sizes = list(names), [facts.size(*pair) for pair in zip(boxes, full, strict=True)]
        twins = _twins([thing.concept.number for thing in placed])
        if twins:
            i, j = twins
            words = facts.apart(boxes[i], boxes[j], full[i], full[j])
            assert words, "layouts in which twins cannot be told apart are refused"
            refs[i], refs[j] = (f"{word} {names[i]}" for word in words)
            sizes[i] = sizes[j] = ""
        relations = [
            r for r in facts.relations(boxes, layout.cover().tolist()) if names[r[0]] != names[r[2]]
        ]
        places = [facts.place(box) for box in boxes]
        return texts.Facts(names, refs, sizes, places, relations, self._english)


class _Placed(NamedTuple):
    concept: Concept
    style: str


def _twins(numbers: Sequence[int]) -> tuple[int, int] | None:
    """The two places of the concept that is there twice; at most one is."""
    for i, number in enumerate(numbers):
        if number in numbers[i + 1 :]:
            return i, numbers.index(number, i + 1)
    return None


def _distinct(numbers: Sequence[int], layout: Layout) -> bool:
    """Whether two things of the same name can be told apart in a layout."""
    twins = _twins(numbers)
    if not twins:
        return True
    boxes, full = layout.boxes().tolist(), layout.boxes_full().tolist()
    i, j = twins
    return facts.apart(boxes[i], boxes[j], full[i], full[j]) is not None


def _stranger(
    placed: Sequence[_Placed], pool: Sequence[Concept], rng: np.random.Generator
) -> str | None:
    """Name of a thing that is nothing like any in the scene; of the category of one of them, if there is such."""
    category = placed[rng.integers(len(placed))].concept.category
    found = unlike([thing.concept for thing in placed], pool, category)
    return found[rng.integers(len(found))].name if found else None


def _encode(image: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()
