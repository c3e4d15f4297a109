"""Classes given by name: which class a label means, and the classifier that their prompts make."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clipjax.errors import UserError
from clipjax.evals.records import Encoder, embed_texts
from clipjax.evals.templates import fill, load_templates, read_json, text_hash


class Classes:
    """The classes of an evaluator.

    Args:
        evaluator: its name, for errors.
        classes: A list of names: a label is an index into it, or one of its names. A mapping from label to a name or a
            list of names (all of a class's names are prompted and averaged). A path that ends in `.json` with either.
            None: labels are strings and are themselves the names, sorted; only classes that occur then exist.
        templates: a set of `clipjax.evals.templates`, a list of strings with `{}`, or a `.json` file.
    """

    def __init__(
        self,
        evaluator: str,
        classes: Sequence[str] | dict[str, Any] | str | None,
        templates: str | Sequence[str],
    ):
        self._evaluator = evaluator
        self._templates = load_templates(templates)
        self._names, self._by_index = _read(classes, evaluator)

    @property
    def open(self) -> bool:
        """Whether the classes are the labels that occur."""
        return self._names is None

    def check(self, label: Any) -> Any:
        """The label; UserError if it is no string where there are no names for labels."""
        if self._names is None and not isinstance(label, str):
            raise UserError(
                f"Evaluator {self._evaluator!r} has labels such as {label!r} but no names for them: "
                "set classes."
            )
        return label

    def names(self, labels: Iterable[Any]) -> dict[str, list[str]]:
        """Names by label, given all labels that occur."""
        return self._names or {label: [label] for label in sorted(set(labels))}

    def indices(
        self, labels: Sequence[Any], records: Sequence[int], names: Iterable[str]
    ) -> np.ndarray:
        """Which classes labels mean, int64 [N].

        Args:
            labels: of N images or regions.
            records: index of the record that each is of, for errors.
            names: of all classes, as `names` gives them.

        Raises:
            UserError: a label that is no class.
        """
        number = {name: i for i, name in enumerate(names)}
        pairs = zip(labels, records, strict=True)
        return np.array([self._index(label, number, record) for label, record in pairs], np.int64)

    def _index(self, label: Any, number: dict[str, int], record: int) -> int:
        is_index = isinstance(label, (int, np.integer))
        if is_index and self._by_index:
            if 0 <= label < len(number):
                return int(label)
        elif str(label) in number:  # the keys of a mapping read from JSON are strings
            return number[str(label)]
        raise UserError(
            f"Record {record} of evaluator {self._evaluator!r} has the label {label!r}, "
            f"which is none of its {len(number)} classes."
        )

    def classifier(
        self, encoder: Encoder, params: Any, names: Iterable[Sequence[str]], chunk: int
    ) -> np.ndarray:
        """Class embeddings float32 [C, D], L2-normalised, of C lists of names.

        The usual ones: the embedding of each prompt is normalised, the embeddings of a class are averaged, and the mean
        is normalised again.
        """
        prompts = [[fill(t, name) for name in group for t in self._templates] for group in names]
        flat = [prompt for group in prompts for prompt in group]
        text_TxD = embed_texts(encoder, params, flat, chunk)
        text_TxD = text_TxD / np.linalg.norm(text_TxD, axis=1, keepdims=True)
        ends = np.cumsum([len(group) for group in prompts])[:-1]
        mean_CxD = np.stack([part.mean(axis=0) for part in np.split(text_TxD, ends)])
        return mean_CxD / np.linalg.norm(mean_CxD, axis=1, keepdims=True)

    def protocol(self, names: dict[str, list[str]]) -> dict[str, Any]:
        """Number and hashes of classes and templates."""
        return {
            "classes": len(names),
            "classes_sha256": text_hash(list(names.values())),
            "templates": len(self._templates),
            "templates_sha256": text_hash(self._templates),
        }


def chance(metrics: Iterable[str], classes: int) -> dict[str, float]:
    """What a model whose scores are all equal gets: `acc@k` and means over classes."""
    return {
        key: int(key[4:]) / classes if key.startswith("acc@") else 1 / classes for key in metrics
    }


def _read(classes: Any, evaluator: str) -> tuple[dict[str, list[str]] | None, bool]:
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
