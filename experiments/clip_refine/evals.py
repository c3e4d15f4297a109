"""How image and text features lie to each other, and how long they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.evals.records import Encoder, check_source, chunks, images_of, texts_of

NORM_UNITS = {"image": "", "text": "", "entropy": "nats"}
UNITS = {"gap": "", "alignment": "", "uniformity": ""}


def geometry(image_NxD: np.ndarray, text_NxD: np.ndarray, chunk: int = 1024) -> dict[str, float]:
    """`gap`, `alignment` and `uniformity` of N pairs.

    The gap is the squared distance of the two means, alignment the mean squared distance of a pair, and uniformity the
    logarithm of the mean of exp(-2 squared distance) over all pairs of two of the 2 N features (Wang & Isola 2020).
    """
    image_NxD, text_NxD = (np.asarray(x, np.float64) for x in (image_NxD, text_NxD))
    z_MxD = np.concatenate([image_NxD, text_NxD])
    square_M, total, m = np.square(z_MxD).sum(1), 0.0, len(z_MxD)
    for i in range(0, m, chunk):
        part = slice(i, i + chunk)
        distance_nxM = square_M[part, None] + square_M - 2 * z_MxD[part] @ z_MxD.T
        total += np.exp(-2 * np.maximum(distance_nxM, 0)).sum()
    return {
        "gap": float(np.square(image_NxD.mean(0) - text_NxD.mean(0)).sum()),
        "alignment": float(np.square(image_NxD - text_NxD).sum(1).mean()),
        "uniformity": float(
            np.log((total - m) / (m * (m - 1)))
        ),  # a feature is no pair with itself
    }


class Geometry:
    """`geometry` of the L2-normalised features of each record's first image and first text.

    Args:
        name: the evaluator's name.
        encoder: the model's encoder.
        source: records with `image` and the text field.
        text_field: whose first text is used.
        chunk: images or texts given to the encoder at once.
    """

    units = UNITS

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        source: Sequence[dict[str, Any]],
        *,
        text_field: str = "text",
        chunk: int = 1024,
    ):
        check_source(name, source)
        self.name, self.protocol = name, {"pairs": len(source), "text_field": text_field}
        self._encoder, self._source, self._field, self._chunk = encoder, source, text_field, chunk
        self._pair(0)  # a wrong field shows at the start

    def run(self, params: Any) -> dict[str, float]:
        """Returns `gap`, `alignment` and `uniformity`."""
        parts = []
        for places in chunks(range(len(self._source)), self._chunk):
            images, texts = zip(*map(self._pair, places), strict=True)
            parts.append((self._encoder.images(params, images), self._encoder.texts(params, texts)))
        return geometry(*(np.concatenate(side) for side in zip(*parts, strict=True)))

    def _pair(self, place: int) -> tuple[Any, str]:
        record = self._source[place]
        where = f"Record {place} of evaluator {self.name!r}"
        return images_of(record)[0], texts_of(record, (self._field,), where)[0]


class Norms:
    """Mean norms of the features before they are normalised, on which the raw products of HyCD depend.

    Args:
        name: the evaluator's name.
        encoder: the model's encoder.
        source: records with `image` and `text`.
        count: of them that are looked at.
    """

    units = NORM_UNITS

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        source: Sequence[dict[str, Any]],
        *,
        count: int = 512,
    ):
        check_source(name, source)
        self._encoder = encoder
        self._records = [source[i] for i in range(min(count, len(source)))]
        self.protocol = {"pairs": len(self._records)}

    def run(self, params: Any) -> dict[str, float]:
        """Returns `image` and `text`, and `entropy`: mean over rows of softmax(raw products) in batches of 64."""
        images = [images_of(r)[0] for r in self._records]
        texts = [texts_of(r, ("text",), "A record")[0] for r in self._records]
        batch = self._encoder.batch(images=images, texts=texts)
        names = ("image_embedding_raw", "text_embedding_raw")
        found = self._encoder.outputs(params, batch, only=names)
        image_NxD, text_NxD = (np.asarray(found[n], np.float64) for n in names)
        entropy = []
        for i in range(0, len(image_NxD), 64):
            logits = image_NxD[i : i + 64] @ text_NxD[i : i + 64].T
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            entropy.append(-(p * np.log(np.maximum(p, 1e-300))).sum(1).mean())
        norm = lambda x_NxD: float(np.linalg.norm(x_NxD, axis=1).mean())  # noqa: E731
        return {
            "image": norm(image_NxD),
            "text": norm(text_NxD),
            "entropy": float(np.mean(entropy)),
        }
