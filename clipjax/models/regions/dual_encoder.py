"""A dual encoder that embeds regions as well: CLOC (Chen et al. 2025, arXiv 2410.02746)."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.grid import square_grid
from clipjax.models.heads import l2_normalise, text_outputs
from clipjax.models.naflex import real_patches


class RegionDualEncoder(DualEncoder, kw_only=True):
    """A `DualEncoder` with a part that makes regions of the image tower's un-pooled tokens.

    The image tower runs once an image, whatever the number of regions; region texts go through the text tower.

    Attributes:
      regions: module `(tokens_BxNxW, embed_dim, grid=, boxes_BxMx4=, text_BxMxD=, real_BxN=) -> (regions_BxMxD,
        boxes_BxMx4)`, such as `Prompter`.
    """

    regions: nn.Module

    needs = ("image", "text", "boxes", "region_text")

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """As `DualEncoder`, and what the batch asks of its regions.

        Args:
          batch: besides, `boxes` [B,M,4] and `region_text` [B,M,L], whose L may be shorter than that of `text`.
          train: as there.

        Returns:
          Outputs. With `boxes`: `region_embedding`; with `region_text`: `region_text_embedding`; with images and
          `region_text`, from a part that takes text prompts: `grounded_boxes`.
        """
        if getattr(self.image, "pool", None) == "attention":
            raise UserError(
                "A region model needs the image tower's patches, and model.image.pool = 'attention' gives queries in "
                "their place; use 'map', 'class' or 'average'."
            )
        outputs = super().__call__(batch, train=train)
        text = None
        if "region_text" in batch:
            self._check_length(batch["region_text"].shape[-1])
            rows = {"text": batch["region_text"]}
            seed = batch["sample_seed"] if train else None
            text = text_outputs(self.text, self.text_head, rows, seed)["text_embedding"]
            outputs["region_text_embedding"] = text
        if "image" in batch and ("boxes" in batch or text is not None):
            tokens = outputs["image_tokens"]
            real = None
            if "image_shape" in batch:
                real = real_patches(batch["image_shape"], tokens.shape[1])
            found, boxes = self.regions(
                tokens,
                self.embed_dim,
                grid=square_grid(self.image, tokens.shape[1], train),
                boxes_BxMx4=batch.get("boxes"),
                text_BxMxD=text,
                real_BxN=real,
            )
            if found is not None:
                outputs["region_embedding"] = l2_normalise(found)
            if boxes is not None:
                outputs["grounded_boxes"] = boxes
        return outputs

    def _check_length(self, length: int) -> None:
        """Refuses region texts whose embedding would depend on how much padding follows them."""
        if length < getattr(self.text, "length", length) and getattr(
            self.text, "sees_padding", True
        ):
            raise UserError(
                f"Region texts of {length} tokens are shorter than the text tower's {self.text.length}, and this tower "
                "sees padding, so that they would mean something else; set data.features.regions.text_length to None."
            )
