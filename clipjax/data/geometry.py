"""Where a point of an image lies in the frame that was cut from it, so that boxes go where their pixels go."""

import math
from typing import NamedTuple

import numpy as np

# Shares of a length below this are rounding.
ROUNDING = 1e-9


class Geometry(NamedTuple):
    """An affine map from an image to a frame, both with (0, 0) as top left and (1, 1) as bottom right corner.

    Attributes:
      matrix_2x3: float64; frame = matrix[:, :2] @ image + matrix[:, 2].
      shown: x1, y1, x2, y2 of the frame: outside of it there is only padding, also where a turned corner would be.
    """

    matrix_2x3: np.ndarray
    shown: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def then(self, matrix_2x3: np.ndarray) -> "Geometry":
        """This map, and another one after it."""
        linear, shift = matrix_2x3[:, :2], matrix_2x3[:, 2:]
        mapped = linear @ self.matrix_2x3
        # What lies outside of the frame now is gone, whatever comes after.
        low_1x2, high_1x2 = _bounds(matrix_2x3, np.clip([self.shown], 0, 1))
        matrix_2x3 = np.concatenate([mapped[:, :2], mapped[:, 2:] + shift], axis=1)
        return Geometry(matrix_2x3, (*low_1x2[0].tolist(), *high_1x2[0].tolist()))

    def rotate(self, degrees: float, size: tuple[int, int]) -> "Geometry":
        """Turns counter-clockwise about the centre of an image of (width, height) pixels.

        The image does not grow: what is turned out of it is gone.
        """
        width, height = size
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        linear = np.array([[c, s * height / width], [-s * width / height, c]])
        shift = 0.5 - linear.sum(1, keepdims=True) / 2
        return self.then(np.concatenate([linear, shift], axis=1))

    def crop(self, box: tuple[float, float, float, float]) -> "Geometry":
        """Makes (left, top, right, bottom), fractions of what there is, the whole; a box beyond [0, 1] pads."""
        left, top, right, bottom = box
        w, h = right - left, bottom - top
        return self.then(np.array([[1 / w, 0, -left / w], [0, 1 / h, -top / h]]))

    def flip(self) -> "Geometry":
        """Exchanges left and right."""
        return self.then(np.array([[-1.0, 0, 1], [0, 1, 0]]))

    def inverse(self) -> "Geometry":
        """The map from the frame back to the image."""
        linear = np.linalg.inv(self.matrix_2x3[:, :2])
        return Geometry(np.concatenate([linear, -linear @ self.matrix_2x3[:, 2:]], axis=1))

    def points(self, points_Nx2: np.ndarray) -> np.ndarray:
        """Points of the image, x and y as fractions, as points of the frame, which may lie outside of it; float64."""
        matrix = self.matrix_2x3
        return np.asarray(points_Nx2, np.float64) @ matrix[:, :2].T + matrix[:, 2]

    def boxes(self, boxes_Mx4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of the image as boxes of the frame.

        Args:
          boxes_Mx4: x1,y1,x2,y2 as fractions of the image.

        Returns:
          float32 [M,4], the bounds of each mapped box, clipped to the frame and to what is shown in it (empty ones: all
          0); and float32 [M], the share of each box's area that is left after clipping.
        """
        low, high = _bounds(self.matrix_2x3, np.asarray(boxes_Mx4, np.float64).reshape(-1, 4))
        first, last = np.clip(self.shown, 0, 1).reshape(2, 2)
        inside_low, inside_high = np.clip(low, first, last), np.clip(high, first, last)
        area = np.prod(high - low, axis=1)
        left = np.prod(inside_high - inside_low, axis=1)
        exists_M = area > ROUNDING**2
        visible_M = np.where(exists_M, left / np.where(exists_M, area, 1), 0)
        visible_M[visible_M < ROUNDING] = 0  # a box that only touches the frame's edge is outside
        found = np.concatenate([inside_low, inside_high], axis=1) * (visible_M > 0)[:, None]
        return found.astype(np.float32), visible_M.astype(np.float32)


def _bounds(matrix_2x3: np.ndarray, boxes_Mx4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of mapped boxes: their least and their largest x and y, float64 [M,2] each."""
    x, y = boxes_Mx4[:, [0, 2, 2, 0]], boxes_Mx4[:, [1, 1, 3, 3]]
    mapped_2xMx4 = np.einsum("ij,jmk->imk", matrix_2x3[:, :2], np.stack([x, y]))
    mapped_2xMx4 += matrix_2x3[:, 2, None, None]
    return mapped_2xMx4.min(axis=2).T, mapped_2xMx4.max(axis=2).T


WHOLE = Geometry(np.array([[1.0, 0, 0], [0, 1, 0]]))
