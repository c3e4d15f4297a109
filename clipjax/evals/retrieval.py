"""Retrieval between images and texts, both ways, with many captions per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipjax.evals import metrics
from clipjax.evals.records import (
    Encoder,
    check_source,
    embed_records,
    embed_texts,
    images_of,
    texts_of,
)
from clipjax.evals.templates import fill, load_templates, text_hash
from clipjax.log.pages.galleries import Gallery, Query
from clipjax.log.pages.images import Answer

_TITLES = {"text_to_image": "images for a text", "image_to_text": "texts for an image"}


@dataclass(frozen=True)
class Hit:
    """One of the best answers to a query.

    `record` and `image` say which image of which record it is (for a text: of a record that has
    that text), `text` is the text, or the first text of the image's record.
    """

    record: int
    image: int
    text: str
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query with its best answers, best first.

    Attributes:
        direction: `text_to_image` or `image_to_text`.
        record: the query's record (for a text: the first that has it).
        image: which image of that record.
        text: the query text, or the first text of the query image's record.
        hits: the best answers.
        rank: 1-based rank of the best right answer among all; where scores tie, the worst case.
    """

    direction: str
    record: int
    image: int
    text: str
    hits: tuple[Hit, ...]
    rank: int


@dataclass(frozen=True)
class _Embedded:
    image_PxD: np.ndarray
    record_P: np.ndarray  # record of each image
    text_TxD: np.ndarray
    texts: list[str]
    texts_of_image: list[list[int]]  # right texts of each image
    images_of_text: list[list[int]]  # right images of each text


class Retrieval:
    """Image-to-text and text-to-image recall at 1, 5 and 10.

    All texts of a record are right for all its images. A text that several records share is one
    gallery entry that is right for all of them (`merge_duplicates`); with False each occurrence is
    an entry of its own with one right record, as the usual COCO protocol counts (its duplicates are
    misses).

    Args:
        name: the evaluator's name, which prefixes its metrics.
        source: records with `image` and the text fields.
        encoder: the model's encoder.
        text_fields: field or fields whose texts are used: `text`, `name`, `keywords`, ...
        template: what a text is put into before it is embedded.
        merge_duplicates: whether equal texts of different records are one entry.
        chunk: images or texts given to the encoder at once.

    Attributes:
        name: as given.
        source: as given.
        protocol: after `run`, what the numbers depend on: counts, a hash of the texts, chance
            levels.
    """

    KS = (1, 5, 10)

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: Encoder,
        *,
        text_fields: str | Sequence[str] = ("text",),
        template: str = "{}",
        merge_duplicates: bool = True,
        chunk: int = 1024,
    ):
        check_source(name, source)
        self.name, self.source = name, source
        self.protocol: dict[str, Any] = {}
        self._encoder = encoder
        self._fields = (text_fields,) if isinstance(text_fields, str) else tuple(text_fields)
        (self._template,) = load_templates([template])
        self._merge, self._chunk = merge_duplicates, chunk
        self._texts(0, source[0])  # a wrong field shows at start-up, not after the first interval

    def run(self, params: Any) -> dict[str, float]:
        """Returns `image_to_text/R@k` and `text_to_image/R@k`, in [0, 1]."""
        e = self._embed(params)
        images, texts = len(e.image_PxD), len(e.texts)
        to_text = metrics.retrieval_recall(e.image_PxD, e.text_TxD, e.texts_of_image, self.KS)
        to_image = metrics.retrieval_recall(e.text_TxD, e.image_PxD, e.images_of_text, self.KS)
        self.protocol = {
            "kind": "retrieval",
            "records": len(self.source),
            "images": images,
            "texts": texts,
            "texts_sha256": text_hash(e.texts),
            "text_fields": list(self._fields),
            "template": self._template,
            "merge_duplicates": self._merge,
            "chance": _both_ways(
                metrics.chance_recall(e.texts_of_image, images, texts, self.KS),
                metrics.chance_recall(e.images_of_text, texts, images, self.KS),
            ),
        }
        return _both_ways(to_text, to_image)

    def galleries(self, params: Any, n: int = 8) -> list[Gallery]:
        """For a report: `examples` by text, and by image."""
        by_direction: dict[str, list[Query]] = {"text_to_image": [], "image_to_text": []}
        for example in self.examples(params, n):
            answers = [
                Answer(hit.text, hit.score, hit.right, self.image(hit.record, hit.image))
                for hit in example.hits
            ]
            image = self.image(example.record, example.image)
            query = Query(example.text, image, answers, example.rank)
            by_direction[example.direction].append(query)
        note = "Queries are evenly spaced through the set, not chosen. Numbers are cosine similarities."
        return [
            Gallery(f"{self.name}: {_TITLES[direction]}", direction == "text_to_image", some, note)
            for direction, some in by_direction.items()
        ]

    def examples(self, params: Any, n: int = 8, *, answers: int = 5) -> list[Example]:
        """What a report shows: n queries by text, then n by image, evenly spaced, not chosen.

        Args:
            params: parameters of the model.
            n: queries each way (fewer where there are fewer).
            answers: best answers to keep.
        """
        e = self._embed(params)
        first_image = np.searchsorted(e.record_P, np.arange(len(self.source)))

        def place(image: int) -> tuple[int, int]:
            record = int(e.record_P[image])
            return record, int(image - first_image[record])

        def first_text(image: int) -> str:
            return e.texts[e.texts_of_image[image][0]]

        examples = []
        for text in _spread(len(e.texts), n):
            best, scores, rank = _answers(
                e.text_TxD[text], e.image_PxD, e.images_of_text[text], answers
            )
            right = set(e.images_of_text[text])
            hits = tuple(
                Hit(*place(p), first_text(p), s, p in right)
                for p, s in zip(best, scores, strict=True)
            )
            query = place(e.images_of_text[text][0])
            examples.append(Example("text_to_image", *query, e.texts[text], hits, rank))
        for image in _spread(len(e.image_PxD), n):
            best, scores, rank = _answers(
                e.image_PxD[image], e.text_TxD, e.texts_of_image[image], answers
            )
            right = set(e.texts_of_image[image])
            hits = tuple(
                Hit(*place(e.images_of_text[t][0]), e.texts[t], s, t in right)
                for t, s in zip(best, scores, strict=True)
            )
            query = place(image)
            examples.append(Example("image_to_text", *query, first_text(image), hits, rank))
        return examples

    def image(self, record: int, image: int) -> Any:
        """The raw image (encoded bytes or uint8 array) that an `Example` or `Hit` names."""
        return images_of(self.source[record])[image]

    def _texts(self, index: int, record: dict[str, Any]) -> list[str]:
        return texts_of(record, self._fields, f"Record {index} of evaluator {self.name!r}")

    def _embed(self, params: Any) -> _Embedded:
        texts: list[str] = []
        number: dict[Any, int] = {}
        texts_of_record: list[list[int]] = []

        def visit(index: int, record: dict[str, Any]) -> None:
            rows = []
            for text in self._texts(index, record):
                key = text if self._merge else (index, text)
                if key not in number:
                    number[key] = len(texts)
                    texts.append(text)
                rows.append(number[key])
            texts_of_record.append(rows)

        image_PxD, record_P = embed_records(
            self._encoder, params, self.source, visit, self._chunk, self.name
        )
        prompts = [fill(self._template, text) for text in texts]
        text_TxD = embed_texts(self._encoder, params, prompts, self._chunk)
        images_of_text: list[list[int]] = [[] for _ in texts]
        for image, record in enumerate(record_P):
            for text in texts_of_record[record]:
                images_of_text[text].append(image)
        texts_of_image = [texts_of_record[record] for record in record_P]
        return _Embedded(image_PxD, record_P, text_TxD, texts, texts_of_image, images_of_text)


def _answers(query_D, gallery_MxD, right: list[int], k: int) -> tuple[list[int], list[float], int]:
    index_1xM, score_1xM = metrics.top_k(query_D[None], gallery_MxD, len(gallery_MxD))
    index_M, score_M = index_1xM[0], score_1xM[0]
    right_M = np.isin(index_M, right)
    rank = int(((score_M >= score_M[right_M].max()) & ~right_M).sum()) + 1
    return index_M[:k].tolist(), score_M[:k].tolist(), rank


def _spread(count: int, n: int) -> list[int]:
    n = min(n, count)
    return [(2 * i + 1) * count // (2 * n) for i in range(n)]


def _both_ways(to_text: dict[str, float], to_image: dict[str, float]) -> dict[str, float]:
    return {f"image_to_text/{k}": v for k, v in to_text.items()} | {
        f"text_to_image/{k}": v for k, v in to_image.items()
    }
