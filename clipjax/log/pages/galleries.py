"""The gallery of retrieval: queries, their best answers, the right ones marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipjax.log.pages.images import NO_IMAGE, Answer, answer_rows, escaped, thumbnail_or_none


@dataclass(frozen=True)
class Query:
    """A query and its best answers, best first.

    Attributes:
        text: the query, or the right text of a query by image.
        image: the query, or the right image of a query by text.
        answers: usually five.
        rank: rank of the best right answer, from 1; None if not known.
    """

    text: str
    image: Any
    answers: Sequence[Answer]
    rank: int | None = None


@dataclass(frozen=True)
class Gallery:
    """Queries of one kind under one title; `by_text` says whether text or image is the query."""

    title: str
    by_text: bool
    queries: Sequence[Query]
    note: str = ""

    def html(self) -> str:
        """The gallery as a section of the page."""
        show = _by_text if self.by_text else _by_image
        right = sum(bool(q.answers) and q.answers[0].right for q in self.queries)
        note = f"{self.note} {right} of {len(self.queries)} are right at the first place.".strip()
        inner = "".join(show(query) for query in self.queries)
        if not self.by_text:
            inner = f"<div class=names>{inner}</div>\n"
        return f"<h2>{escaped(self.title)}</h2>\n<p class=note>{escaped(note)}</p>\n{inner}"


def _by_text(query: Query) -> str:
    thumbs = "".join(
        f"<li>{_image(a.image, a.text, a.right)}"
        f"<div class='label{' right' if a.right else ''}'>{escaped(a.text)}"
        f"<small>{a.score:.3f}{' · right' if a.right else ''}</small></div></li>"
        for a in query.answers
    )
    missed = ""
    if query.image is not None and not any(a.right for a in query.answers):
        missed = f"<div class=missed>{_image(query.image, query.text, False)}</div>"
    return (
        f"<section class=query><div><h3>{escaped(query.text)}</h3>{_rank(query)}{missed}</div>"
        f"<ol class=thumbs>{thumbs}</ol></section>\n"
    )


def _by_image(query: Query) -> str:
    items = answer_rows(query.answers)
    missed = "" if any(a.right for a in query.answers) else f": {escaped(query.text)}"
    return (
        f"<div>{_image(query.image, query.text, False)}<div><ol>{items}</ol>"
        f"{_rank(query, missed)}</div></div>\n"
    )


def _rank(query: Query, missed: str = "") -> str:
    if query.rank is None or (query.rank == 1 and not missed):
        return ""
    return f"<p class=rank>the right one is at place {query.rank:,}{missed}</p>"


def _image(image: Any, words: str, right: bool) -> str:
    uri = thumbnail_or_none(image)
    if uri is None:
        return NO_IMAGE
    kind = "image right" if right else "image"
    return f"<span class='{kind}'><img src='{uri}' alt='{escaped(words)}' loading=lazy></span>"
