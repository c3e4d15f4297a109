"""Learned tokens for both towers: language prompts, and vision prompts that are linear functions of them."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import parameter
from clipjax.registry import nearest

# Arm -> (whether there are language prompts, where vision prompts come from).
ARMS = {
    "text": (True, None),
    "image": (False, "own"),
    "independent": (True, "own"),
    "coupled": (True, "language"),
}


class Prompts(nn.Module):
    """n tokens for each of the first J layers: P_0 ... P_{J-1}, and Pv_j = F_j(P_j) (Khattak et al. 2023, section 3.2).

    Attributes:
      arm: a key of `ARMS`; "coupled" is MaPLe.
      count: n.
      depth: J, the input among them.
      text_width: Wt.
      image_width: Wv.
    """

    arm: str
    count: int
    depth: int
    text_width: int
    image_width: int
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self) -> tuple[jax.Array | None, jax.Array | None]:
        """(language prompts [J, n, Wt], vision prompts [J, n, Wv]); None where the arm has none."""
        if self.arm not in ARMS:
            raise UserError(f"MaPLe has no arm {self.arm!r}{nearest(self.arm, ARMS)}.")
        language, vision = ARMS[self.arm]
        text = self._tokens("text", self.text_width) if language else None
        image = self._tokens("image", self.image_width) if vision == "own" else None
        return text, self._couple(text) if vision == "language" else image

    def _tokens(self, name: str, width: int) -> jax.Array:
        shape, init = (self.depth, self.count, width), nn.initializers.normal(0.02)
        return parameter(self, name, init, shape, (None, None, "embed"), self.param_dtype)

    def _couple(self, text_JxnxW: jax.Array) -> jax.Array:
        shape = (self.depth, self.text_width, self.image_width)
        init = _linear(self.text_width)
        kernel = parameter(
            self, "coupling_kernel", init, shape, (None, "embed", None), self.param_dtype
        )
        bias = parameter(self, "coupling_bias", init, shape[::2], (None, None), self.param_dtype)
        return jnp.einsum("jnw,jwv->jnv", text_JxnxW, kernel) + bias[:, None]


def _linear(width: int) -> nn.initializers.Initializer:
    """PyTorch's default for a linear layer; F_1, F_2, ... begin as copies of one layer, as in the released code."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        two = jax.random.uniform(key, (2, *shape[1:]), dtype, -(width**-0.5), width**-0.5)
        return two[jnp.minimum(jnp.arange(shape[0]), 1)]

    return init
