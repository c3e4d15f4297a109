"""Projectors and predictors with batch norm."""

import jax
from flax import linen as nn

from clipjax.models.batch_norm import BatchNorm
from clipjax.models.layers import Dense


class Projector(nn.Module):
    """Linear layers of the given widths, a batch norm and a ReLU after each but the last.

    Attributes:
      final: the norm after the last layer: "none", "affine" or "plain".
      bias, last_bias: whether the linear layers have biases, and the last one.
    """

    widths: tuple[int, ...]
    final: str
    bias: bool
    last_bias: bool
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, W] -> [B, last width]."""
        dtypes, last = dict(dtype=self.dtype, param_dtype=self.param_dtype), len(self.widths) - 1
        for i, width in enumerate(self.widths):
            axes = ("mlp", None) if i == last else ("embed", "mlp")
            bias = self.last_bias if i == last else self.bias
            x = Dense(width, axes, x.shape[-1] ** -0.5, bias, name=f"layer_{i}", **dtypes)(x)
            if i < last:
                x = nn.relu(BatchNorm(name=f"norm_{i}")(x, train=train))
        if self.final != "none":
            x = BatchNorm(affine=self.final == "affine", name=f"norm_{last}")(x, train=train)
        return x


# Head -> the norm at its end, whether its layers have biases, and the last one.
HEADS = {
    "local": ("none", True, True),
    "barlow": ("affine", True, True),
    "siamese": ("plain", False, False),
    "predict": ("none", False, True),
    "prototype": ("none", True, True),
}
