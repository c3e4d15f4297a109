"""Zero-shot classification: every class is the mean embedding of its prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.evals import metrics
from clipjax.evals.classes import Classes, chance
from clipjax.evals.records import Encoder, check_source, embed_records, field_of


class ZeroShot:
    """Zero-shot accuracy of images against classes that are given by name.

    Every image of a record counts. `clipjax.evals.classes` has the classifier.

    Args:
        name: the evaluator's name, which prefixes its metrics.
        source: records with `image` and the field `label_field`.
        encoder: the model's encoder.
        classes, templates: names of the classes and what they are put into, see `Classes`.
        label_field: which field of a record holds its label (`label`, `category`, ...).
        chunk: images or prompts given to the encoder at once.

    Attributes:
        name: as given.
        protocol: after `run`, what the numbers depend on: counts, hashes of class names and
            templates, and the chance level of each metric.
    """

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: Encoder,
        *,
        classes: Sequence[str] | dict[str, Any] | str | None = None,
        templates: str | Sequence[str] = "simple",
        label_field: str = "label",
        chunk: int = 1024,
    ):
        check_source(name, source)
        self.name = name
        self.protocol: dict[str, Any] = {}
        self._source, self._encoder = source, encoder
        self._classes = Classes(name, classes, templates)
        self._label_field, self._chunk = label_field, chunk
        self._label(0, source[0])  # a wrong field shows at start-up, not after the first interval

    def run(self, params: Any) -> dict[str, float]:
        """Returns `acc@1`, `acc@5` (above 5 classes) and `mean_per_class`, in [0, 1]."""
        labels: list[Any] = []
        image_PxD, record_P = embed_records(
            self._encoder,
            params,
            self._source,
            lambda index, record: labels.append(self._label(index, record)),
            self._chunk,
            self.name,
        )
        names = self._classes.names(labels)
        labels_P = self._classes.indices([labels[r] for r in record_P], record_P, names)
        result = metrics.nearest_class_metrics(
            image_PxD, self.classifier(params, list(names.values())), labels_P
        )
        self.protocol = {
            "kind": "zero_shot",
            "records": len(self._source),
            "images": len(image_PxD),
            "classes_occurring": len(np.unique(labels_P)),
            **self._classes.protocol(names),
            "label_field": self._label_field,
            "chance": chance(result, len(names)),
        }
        return result

    def classifier(self, params: Any, names: Sequence[Sequence[str]]) -> np.ndarray:
        """Class embeddings float32 [C, D], L2-normalised, of C lists of names."""
        return self._classes.classifier(self._encoder, params, names, self._chunk)

    def _label(self, index: int, record: dict[str, Any]) -> Any:
        where = f"Record {index} of evaluator {self.name!r}"
        return self._classes.check(field_of(record, self._label_field, where))
