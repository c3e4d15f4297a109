"""Zero-shot classification: every class is the mean embedding of its prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.errors import UserError
from clipjax.evals import metrics
from clipjax.evals.records import Encoder, embed_records, embed_texts
from clipjax.evals.templates import fill, load_templates, read_json, text_hash


class ZeroShot:
    """Zero-shot accuracy of pictures against classes that are given by name.

    The classifier is the usual one: the embedding of each prompt is normalised, the embeddings of a
    class are averaged, and the mean is normalised again. Every picture of a record counts.

    Args:
        name: the evaluator's name, which prefixes its metrics.
        source: records with `image` and the field `label_field`.
        encoder: the model's encoder.
        classes: names of the classes. A list: a label is an index into it, or one of its names.
            A mapping from label to a name or a list of names (all of a class's names are prompted
            and averaged). A path that ends in `.json` with either. None: labels are strings and are
            themselves the names, sorted; only classes that occur then exist.
        templates: a set of `clipjax.evals.templates`, a list of strings with `{}`, or a `.json`
            file.
        label_field: which field of a record holds its label (`label`, `category`, ...).
        chunk: pictures or prompts given to the encoder at once.

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
        if not len(source):
            raise UserError(f"The source of evaluator {name!r} is empty.")
        self.name = name
        self.protocol: dict[str, Any] = {}
        self._source, self._encoder = source, encoder
        self._templates = load_templates(templates)
        self._classes, self._by_index = _read_classes(classes, name)
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
        )
        classes = self._classes or {label: [label] for label in sorted(set(labels))}
        number = {label: i for i, label in enumerate(classes)}
        labels_P = np.array([self._class_index(labels[r], r, number) for r in record_P])
        result = metrics.nearest_class_metrics(
            image_PxD, self.classifier(params, list(classes.values())), labels_P
        )
        chance = {"acc@1": 1 / len(classes), "mean_per_class": 1 / len(classes)}
        if "acc@5" in result:
            chance["acc@5"] = 5 / len(classes)
        self.protocol = {
            "kind": "zero_shot",
            "records": len(self._source),
            "pictures": len(image_PxD),
            "classes": len(classes),
            "classes_occurring": len(np.unique(labels_P)),
            "classes_sha256": text_hash(list(classes.values())),
            "templates": len(self._templates),
            "templates_sha256": text_hash(self._templates),
            "label_field": self._label_field,
            "chance": chance,
        }
        return result

    def classifier(self, params: Any, names: Sequence[Sequence[str]]) -> np.ndarray:
        """Class embeddings float32 [C, D], L2-normalised, of C lists of names."""
        prompts = [[fill(t, name) for name in group for t in self._templates] for group in names]
        flat = [prompt for group in prompts for prompt in group]
        text_TxD = embed_texts(self._encoder, params, flat, self._chunk)
        text_TxD = text_TxD / np.linalg.norm(text_TxD, axis=1, keepdims=True)
        ends = np.cumsum([len(group) for group in prompts])[:-1]
        mean_CxD = np.stack([part.mean(axis=0) for part in np.split(text_TxD, ends)])
        return mean_CxD / np.linalg.norm(mean_CxD, axis=1, keepdims=True)

    def _label(self, index: int, record: dict[str, Any]) -> Any:
        if self._label_field not in record:
            raise UserError(
                f"Record {index} of evaluator {self.name!r} has no field {self._label_field!r}; "
                f"its fields are {', '.join(sorted(record))}: set label_field."
            )
        label = record[self._label_field]
        if self._classes is None and not isinstance(label, str):
            raise UserError(
                f"Evaluator {self.name!r} has labels such as {label!r} but no names for them: "
                "set classes."
            )
        return label

    def _class_index(self, label: Any, record: int, number: dict[str, int]) -> int:
        is_index = isinstance(label, (int, np.integer))
        if is_index and self._by_index:
            if 0 <= label < len(number):
                return int(label)
        elif str(label) in number:  # the keys of a mapping read from JSON are strings
            return number[str(label)]
        raise UserError(
            f"Record {record} of evaluator {self.name!r} has the label {label!r}, "
            f"which is none of its {len(number)} classes."
        )


def _read_classes(classes: Any, evaluator: str) -> tuple[dict[str, list[str]] | None, bool]:
    """Returns names by label (or by first name), and whether integer labels are positions."""
    if classes is None:
        return None, False
    if isinstance(classes, str):
        classes = read_json(classes, "classes")
    by_index = not hasattr(classes, "items")
    if by_index:
        found = {name: [name] for name in classes}
        if len(found) != len(classes):
            twice = next(name for name in found if list(classes).count(name) > 1)
            raise UserError(f"The class {twice!r} of evaluator {evaluator!r} is listed twice.")
    else:
        found = {str(k): [v] if isinstance(v, str) else list(v) for k, v in classes.items()}
    if len(found) < 2 or not all(
        names and all(n.strip() for n in names) for names in found.values()
    ):
        raise UserError(f"Evaluator {evaluator!r} needs at least two classes, each with a name.")
    return found, by_index
