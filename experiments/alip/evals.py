"""Do the weights find the pairs that do not belong together?"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from clipjax.errors import UserError
from clipjax.evals.records import embed_records, embed_texts, field_of
from experiments.alip.losses import MEANS, pair_weights, similarities


class ExchangedPairs:
    """Area under the ROC curve of the weight Ws Wt, as a detector of raw texts that are another image's (low weight).

    Args:
      name: of the evaluator.
      source: records with `image`, `raw`, `synthetic` and `exchanged`, such as `sources.RawAndSynthetic`.
      encoder: the model's.
      sample_gate, raw_gate: of the weights: ALIP's, whatever the model was trained with.
      chunk: images or texts given to the encoder at once.
    """

    units: ClassVar = {"weight_clean": "", "weight_exchanged": ""}

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: Any,
        *,
        sample_gate: float = 2.0,
        raw_gate: float = 2.0,
        chunk: int = 1024,
    ):
        self.name, self.source, self.protocol = name, source, {}
        self._encoder, self._gates, self._chunk = encoder, (sample_gate, raw_gate), chunk

    def run(self, params: Any) -> dict[str, float]:
        """Returns `auc` (chance 1/2) and the mean weights of clean and of exchanged pairs."""
        encoder, chunk, fields = self._encoder, self._chunk, ("raw", "synthetic", "exchanged")
        rows: list[list[Any]] = []

        def visit(index: int, record: dict[str, Any]) -> None:
            rows.append([field_of(record, f, f"Record {index} of {self.name!r}") for f in fields])

        image_BxD, _ = embed_records(encoder, params, self.source, visit, chunk, self.name)
        raw, synthetic, exchanged = zip(*rows, strict=True)
        texts = (embed_texts(encoder, params, some, chunk) for some in (raw, synthetic))
        means = {name: np.asarray(params[name]) for name in MEANS}
        weight_B, _ = pair_weights(similarities(image_BxD, *texts), means, *self._gates, 0.0)
        exchanged_B, weight_B = np.array(exchanged, bool), np.asarray(weight_B)
        if exchanged_B.all() or not exchanged_B.any():
            raise UserError(
                f"The source of evaluator {self.name!r} needs clean and exchanged pairs; set its share above 0."
            )
        low, high = weight_B[exchanged_B], weight_B[~exchanged_B]
        self.protocol = {"records": len(rows), "exchanged": len(low), "chance": {"auc": 0.5}}
        found = {"weight_clean": float(high.mean()), "weight_exchanged": float(low.mean())}
        return {"auc": area_under_curve(low, high), **found}


def area_under_curve(low: np.ndarray, high: np.ndarray) -> float:
    """How often one of `low` is below one of `high`; ties count one half, as all weights of 1 are."""
    return float(np.mean((low[:, None] < high) + 0.5 * (low[:, None] == high)))
