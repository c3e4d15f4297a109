"""Which text of a record a training sample gets. `kind` in a config is a key of `KINDS` or an import path."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax import registry
from clipjax.data.images import BadRecord
from clipjax.errors import UserError

KINDS = {
    "any": "clipjax.data.captions:AnyCaption",
    "first": "clipjax.data.captions:FirstCaption",
    "name_and_keywords": "clipjax.data.captions:NameAndKeywords",
}


def make_captions(config: Mapping[str, Any]) -> Any:
    """The caption policy `(record, rng) -> str` of a config section."""
    settings = dict(config)
    kind = settings.pop("kind")
    return registry.call(
        registry.lookup(kind, KINDS, "caption policy"), settings, f"Caption policy {kind!r}"
    )


class AnyCaption:
    """One of the record's texts, each as likely."""

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> str:
        """Raises BadRecord if the record has no text that is not blank."""
        texts = [t for t in record.get("text", ()) if t.strip()]
        if not texts:
            raise BadRecord("text is empty")
        return texts[rng.integers(len(texts))]


class FirstCaption:
    """The record's first text, always."""

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> str:
        """Raises BadRecord if there is none or it is blank."""
        del rng
        texts = record.get("text", ())
        if not texts or not texts[0].strip():
            raise BadRecord("text is empty")
        return texts[0]


class NameAndKeywords:
    """A name in a template, some keywords, or both: for data that has names and not sentences.

    Args:
      templates: strings with one {}, of which each text gets one at random.
      name: probability of the name alone.
      keywords: probability of one to three keywords alone; otherwise name and keywords stand together.
    """

    def __init__(
        self, templates: Sequence[str] = ("{}",), name: float = 0.5, keywords: float = 0.0
    ):
        templates = (templates,) if isinstance(templates, str) else tuple(templates)
        for template in templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                raise UserError(
                    f"The caption template {template!r} must have one {{}} for the name."
                )
        if not templates:
            raise UserError("The caption policy needs at least one template, such as '{}'.")
        if min(name, keywords) < 0 or name + keywords > 1:
            raise UserError(
                f"The probabilities of captions, name {name} and keywords {keywords}, must not be below 0 "
                "or above 1 together."
            )
        self.templates, self.name, self.keywords = templates, name, keywords

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> str:
        """Raises BadRecord if the record has no name."""
        name = record.get("name", "")
        if not name.strip():
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
        return self.templates[rng.integers(len(self.templates))].replace("{}", subject)
