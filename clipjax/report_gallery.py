"""The report's retrieval gallery: queries, their best answers, the right ones marked."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipjax.report_pictures import thumbnail_uri


@dataclass(frozen=True)
class Answer:
    """One of the best answers to a query.

    `image` is PIL, uint8 [H, W, 1|3|4] or encoded bytes; None where there is no picture to show.
    """

    text: str
    score: float
    right: bool
    image: Any = None


@dataclass(frozen=True)
class Query:
    """A query and its best answers, best first.

    Attributes:
        text: the query, or the right text of a query by picture.
        image: the query, or the right picture of a query by text.
        answers: usually five.
        rank: rank of the best right answer, from 1; None if not known.
    """

    text: str
    image: Any
    answers: Sequence[Answer]
    rank: int | None = None


@dataclass(frozen=True)
class Gallery:
    """Queries of one kind under one title; `by_text` says whether text or picture is the query."""

    title: str
    by_text: bool
    queries: Sequence[Query]
    note: str = ""

    def html(self) -> str:
        """The gallery as a section of the page."""
        show = _by_text if self.by_text else _by_picture
        right = sum(bool(q.answers) and q.answers[0].right for q in self.queries)
        note = f"{self.note} {right} of {len(self.queries)} are right at the first place.".strip()
        inner = "".join(show(query) for query in self.queries)
        if not self.by_text:
            inner = f"<div class=names>{inner}</div>\n"
        return f"<h2>{_text(self.title)}</h2>\n<p class=note>{_text(note)}</p>\n{inner}"


def _by_text(query: Query) -> str:
    thumbs = "".join(
        f"<li>{_picture(a.image, a.text, a.right)}"
        f"<div class='label{' right' if a.right else ''}'>{_text(a.text)}"
        f"<small>{a.score:.3f}{' · right' if a.right else ''}</small></div></li>"
        for a in query.answers
    )
    missed = ""
    if query.image is not None and not any(a.right for a in query.answers):
        missed = f"<div class=missed>{_picture(query.image, query.text, False)}</div>"
    return (
        f"<section class=query><div><h3>{_text(query.text)}</h3>{_rank(query)}{missed}</div>"
        f"<ol class=thumbs>{thumbs}</ol></section>\n"
    )


def _by_picture(query: Query) -> str:
    items = "".join(
        f"<li{' class=right' if a.right else ''}><span>{'✓' if a.right else ''}</span>"
        f"<span>{_text(a.text)}</span><span>{a.score:.3f}</span></li>"
        for a in query.answers
    )
    missed = "" if any(a.right for a in query.answers) else f": {_text(query.text)}"
    return (
        f"<div>{_picture(query.image, query.text, False)}<div><ol>{items}</ol>"
        f"{_rank(query, missed)}</div></div>\n"
    )


def _rank(query: Query, missed: str = "") -> str:
    if query.rank is None or (query.rank == 1 and not missed):
        return ""
    return f"<p class=rank>the right one is at place {query.rank:,}{missed}</p>"


def _picture(image: Any, text: str, right: bool) -> str:
    kind = "picture right" if right else "picture"
    try:
        source = None if image is None else thumbnail_uri(image)
    except (OSError, ValueError, TypeError, KeyError):
        source = None
    if source is None:
        return f"<span class='{kind} empty'>no picture</span>"
    return f"<span class='{kind}'><img src='{source}' alt='{_text(text)}' loading=lazy></span>"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
