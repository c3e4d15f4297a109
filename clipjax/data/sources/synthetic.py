"""Images of noise, for speed tests and dry runs."""

from typing import Any

import numpy as np


class Synthetic:
    """Noise images with numbered captions, for speed tests and dry runs."""

    def __init__(self, size: int = 224, length: int = 100_000):
        self._size, self._length = size, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (self._size, self._size, 3), np.uint8)
        return {"image": image, "text": [f"picture number {index}"], "language": "en"}
