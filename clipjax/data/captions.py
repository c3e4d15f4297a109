"""Which texts of a record a training sample gets. `kind` in a config is a key of `KINDS` or an import path.

A policy is `(record, rng) -> list of texts`, always `count` many. With `count` 1 the batch's `text` is [B,L], else
[B,K,L]. A record's `text` is the list of its captions; every other column of a data set keeps its name, so a policy can
tell alt-text from rewrites.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax import registry
from clipjax.data.bad import BadRecord
from clipjax.data.sources.rows import strings
from clipjax.errors import UserError

KINDS = {
    "any": "clipjax.data.captions:AnyCaption",
    "choice": "clipjax.data.captions:Choice",
    "first": "clipjax.data.captions:FirstCaption",
    "name_and_keywords": "clipjax.data.captions:NameAndKeywords",
    "several": "clipjax.data.captions:Several",
    "sub_captions": "clipjax.data.captions:SubCaptions",
    "template": "clipjax.data.captions:Template",
}

Record = Mapping[str, Any]


def make_captions(config: Mapping[str, Any]) -> Any:
    """The caption policy of a config section.

    Raises:
      UserError: an unknown kind or setting, or one that means nothing.
    """
    settings = dict(config)
    kind = settings.pop("kind", None)
    if kind is None:
        raise UserError(f"A caption policy needs a 'kind', one of {', '.join(KINDS)}.")
    return registry.call(
        registry.lookup(kind, KINDS, "caption policy"), settings, f"Caption policy {kind!r}"
    )


def texts_of(record: Record, field: str = "text") -> list[str]:
    """The texts of a field that are not blank."""
    return [t for t in strings(record.get(field)) if t.strip()]


class AnyCaption:
    """One of the record's texts, each as likely.

    With the original first and its rewrites after it, this is LaCLIP's choice (Fan et al. 2023, arXiv 2305.20088).

    Args:
      min_words: a drawn text with fewer words gives way to the record's first (LaCLIP: 2).
    """

    count = 1

    def __init__(self, min_words: int = 0):
        self._min_words = min_words

    def __call__(self, record: Record, rng: np.random.Generator) -> list[str]:
        """Raises BadRecord if the record has no text that is not blank."""
        texts = texts_of(record)
        if not texts:
            raise BadRecord("text is empty")
        text = texts[rng.integers(len(texts))]
        return [text if len(text.split()) >= self._min_words else texts[0]]


class FirstCaption:
    """The record's first text, always."""

    count = 1

    def __call__(self, record: Record, rng: np.random.Generator) -> list[str]:
        """Raises BadRecord if there is none or it is blank."""
        del rng
        texts = strings(record.get("text"))
        if not texts or not texts[0].strip():
            raise BadRecord("text is empty")
        return [texts[0]]


class Choice:
    """A field by its probability, and one of its texts: alt-text or synthetic caption.

    With {"alt": 0.5, "fused": 0.5} VeCLIP's mixed training (Lai et al. 2024, arXiv 2310.07699).

    Args:
      fields: name -> probability; they are scaled to a sum of 1.
      refusals: regular expressions, any case; a text in which one is found is not used (a language model's "I cannot").
      min_words: nor is one with fewer words.
    """

    count = 1

    def __init__(
        self, fields: Mapping[str, float], refusals: Sequence[str] = (), min_words: int = 0
    ):
        self._fields = dict(fields)
        shares = list(self._fields.values())
        numbers = all(isinstance(s, int | float) and not isinstance(s, bool) for s in shares)
        if not shares or not numbers or min(shares) < 0 or sum(shares) <= 0:
            raise UserError(
                f"The caption policy 'choice' needs fields with probabilities such as {{'alt': 0.5, 'fused': 0.5}}, "
                f"not {self._fields!r}."
            )
        refusals = (refusals,) if isinstance(refusals, str) else tuple(refusals)
        try:
            self._refusals = [re.compile(r, re.IGNORECASE) for r in refusals]
        except re.error as error:
            raise UserError(
                f"A refusal of 'choice' is not a valid regular expression: {error}."
            ) from error
        self._edges = np.cumsum(shares) / sum(shares)
        self._min_words = min_words

    def __call__(self, record: Record, rng: np.random.Generator) -> list[str]:
        """If the drawn field has no text to use, the others are tried in their order.

        Raises:
          BadRecord: none of them has one.
        """
        names = list(self._fields)
        drawn = names[int(np.searchsorted(self._edges, rng.random(), side="right"))]
        for name in (drawn, *(n for n in names if n != drawn)):
            texts = [t for t in texts_of(record, name) if self._usable(t)]
            if texts:
                return [texts[rng.integers(len(texts))]]
        raise BadRecord("text is empty")

    def _usable(self, text: str) -> bool:
        long = len(text.split()) >= self._min_words
        return long and not any(r.search(text) for r in self._refusals)


class Several:
    """`count` different texts of the record; some twice only where there are fewer.

    Args:
      count: texts K of a sample.
    """

    def __init__(self, count: int):
        self.count = _at_least(1, count, "several", "count")

    def __call__(self, record: Record, rng: np.random.Generator) -> list[str]:
        """Raises BadRecord if the record has no text that is not blank."""
        texts = texts_of(record)
        if not texts:
            raise BadRecord("text is empty")
        return _draw(texts, self.count, rng)


class SubCaptions:
    """A caption, and sentences drawn from long ones: DreamLIP's positives (Zheng et al. 2024, arXiv 2403.17007).

    Long captions are split at line breaks and at full stops before white space (so "3.5 m" stays whole, where the
    published code would cut it); all fields' sentences are one pool, in order.

    Args:
      samples: sentences of a sample; different ones, and some again only where there are fewer.
      raw: the field of the caption that always comes first.
      long: fields to split. A record without any sentence gets its raw caption in their place.
      merged: so many neighbouring sentences are joined to one text.
    """

    def __init__(
        self,
        samples: int = 6,
        raw: str = "text",
        long: Sequence[str] = ("long",),
        merged: int = 1,
    ):
        self._samples = _at_least(0, samples, "sub_captions", "samples")
        self._merged = _at_least(1, merged, "sub_captions", "merged")
        self._raw, self._long = raw, (long,) if isinstance(long, str) else tuple(long)
        self.count = 1 + self._samples

    def __call__(self, record: Record, rng: np.random.Generator) -> list[str]:
        """Raises BadRecord if the record has neither a raw caption nor a sentence."""
        sentences = [s for name in self._long for t in texts_of(record, name) for s in split(t)]
        n = self._merged
        pool = [". ".join(sentences[i : i + n]) for i in range(max(1, len(sentences) - n + 1))]
        pool = [p for p in pool if p]
        raw = texts_of(record, self._raw)[:1] or pool[:1]
        if not raw:
            raise BadRecord("text is empty")
        return [*raw, *_draw(pool or raw, self._samples, rng)]


def split(text: str) -> list[str]:
    """Sentences of a text, without their full stops."""
    parts = re.split(r"\n|</s>|\.(?=\s|$)", text)
    return [part.strip() for part in parts if part.strip()]


class Template:
    """A field's text in a template: "a photo of a {}" for data that has class names.

    Args:
      templates: strings with one {}, of which each text gets one at random.
      field: where the text stands.
    """

    count = 1

    def __init__(self, templates: Sequence[str], field: str = "text"):
        self._templates, self._field = _templates(templates), field

    def __call__(self, record: Record, rng: np.random.Generator) -> list[str]:
        """Raises BadRecord if the field has no text."""
        texts = texts_of(record, self._field)
        if not texts:
            raise BadRecord("text is empty")
        text = texts[rng.integers(len(texts))]
        return [_fill(self._templates, text, rng)]


class NameAndKeywords:
    """A name in a template, some keywords, or both: for data that has names and not sentences.

    Args:
      templates: strings with one {}, of which each text gets one at random.
      name: probability of the name alone.
      keywords: probability of one to three keywords alone; otherwise name and keywords stand together.
    """

    count = 1

    def __init__(
        self, templates: Sequence[str] = ("{}",), name: float = 0.5, keywords: float = 0.0
    ):
        if min(name, keywords) < 0 or name + keywords > 1:
            raise UserError(
                f"The probabilities of captions, name {name} and keywords {keywords}, must not be below 0 "
                "or above 1 together."
            )
        self.templates, self.name, self.keywords = _templates(templates), name, keywords

    def __call__(self, record: Record, rng: np.random.Generator) -> list[str]:
        """Raises BadRecord if the record has no name."""
        name = record.get("name", "")
        if not isinstance(name, str) or not name.strip():
            raise BadRecord("text is empty")
        words = [k for k in record.get("keywords", ()) if k != name]
        draw = rng.random()
        chosen = [words[i] for i in rng.permutation(len(words))[: rng.integers(1, 4)]]
        if draw < self.name or not chosen:
            subject = name
        elif draw < self.name + self.keywords:
            subject = ", ".join(chosen)
        else:
            subject = ", ".join([name, *chosen])
        return [_fill(self.templates, subject, rng)]


def _templates(templates: Sequence[str]) -> tuple[str, ...]:
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise UserError(f"The caption template {template!r} must have one {{}} for the name.")
    if not templates:
        raise UserError("The caption policy needs at least one template, such as '{}'.")
    return templates


def _fill(templates: Sequence[str], text: str, rng: np.random.Generator) -> str:
    return templates[rng.integers(len(templates))].replace("{}", text)


def _draw(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` of them in random order, all different if there are as many."""
    order = rng.permutation(len(texts))[:count]
    more = rng.integers(len(texts), size=count - len(order))
    return [texts[i] for i in (*order, *more)]


def _at_least(least: int, value: int, kind: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(
            f"The caption policy {kind!r} needs a whole number of at least {least} for {name!r}, not {value!r}."
        )
    return value
