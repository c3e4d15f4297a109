"""Boxes of the first view and ids of their texts: the feature `regions`."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from clipjax.data.features.settings import (
    row_length,
    struct,
    tokenizer_section,
    whole,
)
from clipjax.data.features.text import encode
from clipjax.data.features.view import View
from clipjax.data.regions import draw_regions
from clipjax.data.tokenizers import Tokenizer, make_tokenizer
from clipjax.errors import UserError


class Regions:
    """`boxes` float32 [M,4], `region_text` int32 [M,L], `region_mask` bool [M]: regions of the first view of `image`.

    See clipjax/data/regions.py. Where a record has fewer than M, the last boxes are zeros and their texts padding.

    Args:
      config: of the run.
      count: M.
      min_visible: share of a box's area that the crop must leave.
      min_side: of what is left, as a fraction of the frame.
      text_length: ids L of a region's text; None: as many as the text tower takes.

    Raises:
      UserError: a setting that means nothing, or no feature `image`.
    """

    after = ("image",)
    tokenizer: Tokenizer

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        count: int,
        min_visible: float = 0.25,
        min_side: float = 0.02,
        text_length: int | None = None,
    ):
        where = "config.data.features.regions"
        self.count = whole(count, 1, f"{where}.count")
        for name, value in (("min_visible", min_visible), ("min_side", min_side)):
            if not 0 <= value <= 1:
                raise UserError(f"{where}.{name} is a fraction from 0 to 1, not {value!r}.")
        self.length = row_length(config, text_length, "regions", "text_length")
        self._section = tokenizer_section(config, None, "regions")
        self._settings = {"count": count, "min_visible": min_visible, "min_side": min_side}

    def open(self) -> None:
        """Makes the tokenizer, which may read files."""
        self.tokenizer = make_tokenizer(self._section, self.length)

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The three fields of M regions."""
        return {
            "boxes": struct((self.count, 4), np.float32),
            "region_text": struct((self.count, self.length), np.int32),
            "region_mask": struct((self.count,), np.bool_),
        }

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Draws regions of the view, and leaves their texts in `view.captions`.

        Raises:
          BadRecord: boxes that are not m x 4 finite numbers, or not as many texts.
        """
        box_format, geometry = view.entry.get("box_format", "xyxy"), view.frame("image").geometry
        boxes_Nx4, texts = draw_regions(
            record, box_format, view.image.size, geometry, self._settings, rng
        )
        view.captions["regions"], n = texts, len(texts)
        boxes_Mx4 = np.zeros((self.count, 4), np.float32)
        boxes_Mx4[:n] = boxes_Nx4
        ids_MxL = np.full((self.count, self.length), self.tokenizer.pad_id, np.int32)
        if n:
            ids_MxL[:n] = encode(self.tokenizer, texts, view)
        mask_M = np.arange(self.count) < n
        return {"boxes": boxes_Mx4, "region_text": ids_MxL, "region_mask": mask_M}
