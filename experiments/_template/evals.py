"""How near images are to their texts."""

import numpy as np


class Alignment:
    """Mean cosine of an image and its name.

    Args:
      name: of the entry.
      encoder: of the model.
      source: records with `image` and `name`.
      count: records that are looked at.
    """

    def __init__(self, name, encoder, source, *, count=100):
        self.units = {"cosine": ""}
        self._encoder = encoder
        self._records = [source[i] for i in range(min(count, len(source)))]

    def run(self, params):
        """Returns `cosine`, in [-1, 1]."""
        images = [
            r["image"][0] if isinstance(r["image"], list) else r["image"] for r in self._records
        ]
        image_NxD = self._encoder.images(params, images)
        text_NxD = self._encoder.texts(params, [r["name"] for r in self._records])
        self.protocol = {"records": len(self._records), "chance": {"cosine": 0.0}}
        return {"cosine": float(np.mean(np.sum(image_NxD * text_NxD, axis=1)))}
