"""A dual encoder beside a frozen one."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from clipjax.models.dual_encoder import DualEncoder


class TaughtDualEncoder(DualEncoder, kw_only=True):
    """A `DualEncoder` whose outputs hold those of `teacher` too, as `teacher_...` and without a gradient.

    Attributes:
      teacher: a model of its own, always in evaluation mode; `config.optim.freeze` must hold its parameters.
    """

    teacher: nn.Module

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """As `DualEncoder`; where nothing reads the teacher's outputs, the compiler leaves it out."""
        taught = jax.lax.stop_gradient(self.teacher(batch))
        outputs = super().__call__(batch, train=train)
        return outputs | {f"teacher_{name}": x for name, x in taught.items()}
