"""CLIP with ALIP's three running means."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.layers import parameter
from experiments.alip.losses import MEANS

FREEZE = ("mean_(tc|xt|xc)", True)  # at the head of config.optim.freeze


class GatedDualEncoder(DualEncoder):
    """A `DualEncoder` whose parameters hold the running means of `gated_contrastive`, which updates them.

    Without them it is a `DualEncoder`: `clipjax convert --without=mean_tc,mean_xt,mean_xc`.
    """

    def setup(self) -> None:
        super().setup()
        for name in MEANS:  # 1 at first, as published: until they have come down nearly every sample counts as noisy
            setattr(self, name, parameter(self, name, nn.initializers.ones, (), (), "float32"))

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """As `DualEncoder`, and the running means as outputs of their names, float32 []."""
        return super().__call__(batch, train=train) | {n: getattr(self, n) for n in MEANS}
