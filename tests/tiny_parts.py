"""Parts that the tests' configs name by import path."""

import jax.numpy as jnp

from clipjax.data.drawings import Drawings
from clipjax.data.scenes import Scenes


class Flawed:
    """Drawings of which every `every`-th record is broken, each in another way."""

    def __init__(self, every):
        self._drawings, self._every = Drawings(styles=("noto",), group="concept"), every

    def __len__(self):
        return len(self._drawings)

    def __getitem__(self, index):
        record = self._drawings[index]
        if index % self._every == 0:
            flaws = ({"image": b""}, {"image": b"\xff\xd8\xff\xe0 torn"}, {"name": " "})
            record = record | flaws[index // self._every % 3]
        return record


class NumberedScenes(Scenes):
    """Scenes, each with its number."""

    def __init__(self, length):
        super().__init__(size=96, length=length, backgrounds="plain")

    def __getitem__(self, index):
        return super().__getitem__(index) | {"layout_seed": index}


def good_value_bad_gradient(outputs, batch, *, mesh=None):
    """The value is 0, its gradient is not a number."""
    del batch, mesh
    scale = outputs["logit_scale"]
    return jnp.sqrt(scale - scale), {}
