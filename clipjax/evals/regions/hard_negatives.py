"""Hard negatives: is an image nearer to its caption than to one in which a single thing is wrong?"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError
from clipjax.evals import metrics
from clipjax.evals.records import (
    Encoder,
    check_source,
    chunks,
    field_of,
    images_of,
    naming_records,
)
from clipjax.evals.templates import text_hash


class _Negative(NamedTuple):
    wrong: str
    right: str
    kind: str | None


class HardNegatives:
    """Share of wrong captions that are farther from an image than the right caption; ties count half.

    The protocol of SugarCrepe (Hsieh et al. 2023), by kind of mistake. Every image of a record counts with every
    wrong caption. Sets with several wrong captions an image, of which ARO (Yuksekgonul et al. 2023) wants all to be
    farther, get a higher number here, because pairs count one by one.

    Args:
        name: the evaluator's name, which prefixes its metrics.
        source: records with `image`, right captions, and wrong ones: `negative_field`, strings; optionally
            `negative_of`, which caption each was made of (without it, there must be one), and `negative_kinds`. A
            record with one wrong caption may have plain values in place of lists.
        encoder: the model's encoder.
        text_field: which field of a record holds its right captions.
        negative_field: which holds the wrong ones; a record may have none.
        chunk: records given to the encoder at once.

    Attributes:
        name: as given.
        protocol: after `run`, what the numbers depend on: counts, a hash of the wrong captions, chance levels.
    """

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: Encoder,
        *,
        text_field: str = "text",
        negative_field: str = "hard_negatives",
        chunk: int = 256,
    ):
        check_source(name, source)
        self.name = name
        self.protocol: dict[str, Any] = {}
        self._source, self._encoder, self._chunk = source, encoder, chunk
        self._text_field, self._negative_field = text_field, negative_field
        next(self._records(range(1)), None)  # a wrong field shows at start-up

    def run(self, params: Any) -> dict[str, float]:
        """Returns `accuracy`, the mean over all pairs, and `accuracy/KIND` for each kind, in [0, 1]."""
        hits: list[np.ndarray] = []
        kinds: list[str | None] = []
        wrong: list[str] = []
        image_count = records = 0
        for some in chunks(range(len(self._source)), self._chunk):
            images: list[Any] = []
            owners: list[int] = []
            pairs: list[tuple[int, _Negative]] = []
            for index, candidates, negatives in self._records(some):
                records += 1
                for image in candidates if negatives else ():
                    pairs += [(len(images), negative) for negative in negatives]
                    images.append(image)
                    owners.append(index)
            if pairs:
                image_count += len(images)
                with naming_records(self.name, owners):
                    hits.append(self._hits(params, images, pairs))
                kinds += [negative.kind for _, negative in pairs]
                wrong += [negative.wrong for _, negative in pairs]
        if not hits:
            raise UserError(
                f"No record of evaluator {self.name!r} has anything in {self._negative_field!r}."
            )
        hits_N = np.concatenate(hits)
        result = {"accuracy": float(hits_N.mean())}
        counts = {}
        for kind in sorted({kind for kind in kinds if kind is not None}):
            of_kind_N = np.array([k == kind for k in kinds])
            result[f"accuracy/{kind}"] = float(hits_N[of_kind_N].mean())
            counts[kind] = int(of_kind_N.sum())
        self.protocol = {
            "kind": "hard_negatives",
            "records": len(self._source),
            "bad_records": len(self._source) - records,
            "images": image_count,
            "pairs": len(hits_N),
            "pairs_by_kind": counts,
            "negatives_sha256": text_hash(wrong),
            "text_field": self._text_field,
            "negative_field": self._negative_field,
            "chance": dict.fromkeys(result, 0.5),
        }
        return result

    def _hits(
        self, params: Any, images: list[Any], pairs: list[tuple[int, _Negative]]
    ) -> np.ndarray:
        texts = list(dict.fromkeys(t for _, n in pairs for t in (n.right, n.wrong)))
        number = {text: i for i, text in enumerate(texts)}
        image_PxD = self._encoder.images(params, images)
        text_TxD = self._encoder.texts(params, texts)
        return metrics.pair_hits(
            image_PxD[[place for place, _ in pairs]],
            text_TxD[[number[negative.right] for _, negative in pairs]],
            text_TxD[[number[negative.wrong] for _, negative in pairs]],
        )

    def _records(self, indices: Sequence[int]) -> Iterator[tuple[int, list[Any], list[_Negative]]]:
        """Index, images and wrong captions of each record that the source can give."""
        for index in indices:
            try:
                record = self._source[index]
            except BadRecord:
                continue
            negatives = self._negatives(index, record)
            yield index, images_of(record), negatives

    def _negatives(self, index: int, record: dict[str, Any]) -> list[_Negative]:
        where = f"Record {index} of evaluator {self.name!r}"
        field_of(record, "image", where)
        right = _strings(field_of(record, self._text_field, where), self._text_field, where)
        wrong = _strings(field_of(record, self._negative_field, where), self._negative_field, where)
        kinds = record.get("negative_kinds")
        kinds = [None] * len(wrong) if kinds is None else _strings(kinds, "negative_kinds", where)
        of = record.get("negative_of")
        if of is None and wrong and len(right) != 1:
            raise UserError(
                f"{where} has {len(right)} right captions and no 'negative_of', which says of which a wrong one is."
            )
        of = [0] * len(wrong) if of is None else np.atleast_1d(of).tolist()
        if len(kinds) != len(wrong) or len(of) != len(wrong):
            raise UserError(
                f"{where} has {len(wrong)} wrong captions, {len(kinds)} kinds and {len(of)} places of right ones."
            )
        if any(not isinstance(place, int) or not 0 <= place < len(right) for place in of):
            raise UserError(f"{where} has a 'negative_of' that is none of its captions.")
        return [_Negative(w, right[o], k) for w, o, k in zip(wrong, of, kinds, strict=True)]


def _strings(value: Any, field: str, where: str) -> list[str]:
    """A string, a list of them, or None, as a list."""
    found = [] if value is None else np.atleast_1d(np.asarray(value, object)).tolist()
    if not all(isinstance(text, str) for text in found):
        raise UserError(f"{where} has in {field!r} neither a string nor a list of strings.")
    return found
