"""A dual encoder that says where its view was cut."""

from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.layers import Dense


class CropEncoder(DualEncoder, kw_only=True):
    """A `DualEncoder` with one more output, `crop` [B, 4], from its image embedding."""

    def setup(self):
        super().setup()
        self.crop_head = Dense(4, ("embed", None), 0.02)

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        if "image" in batch:
            outputs["crop"] = self.crop_head(outputs["image_embedding"])
        return outputs
