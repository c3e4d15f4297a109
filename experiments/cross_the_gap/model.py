"""A dual encoder that also embeds a second view of each image."""

from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.heads import image_outputs


class TwoViewEncoder(DualEncoder, kw_only=True):
    """A `DualEncoder` with one more output, `view_embedding` [B, D], of the batch's `view` where it has one."""

    needs = ("image", "text", "view")

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        if "view" in batch:
            seed = batch["sample_seed"] if train else None
            view = {"image": batch["view"]}
            found = image_outputs(self.image, self.image_head, view, seed, self.mean, self.std)
            outputs["view_embedding"] = found["image_embedding"]
        return outputs
