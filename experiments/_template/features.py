"""Which part of the image a view shows."""

import jax
import numpy as np


class Crop:
    """`crop` float32 [4]: x1, y1, x2, y2 of the view in the upright image, as fractions."""

    after = ("image",)

    def __init__(self, config, *, name):
        del config
        self.name = name

    def fields(self):
        return {self.name: jax.ShapeDtypeStruct((4,), np.float32)}

    def __call__(self, record, view, rng):
        del record, rng
        corners = view.frame().geometry.inverse().points(np.array([[0.0, 0.0], [1.0, 1.0]]))
        return {self.name: corners.reshape(4).astype(np.float32)}
