"""A map of labels a pixel that moves with the pixels: the feature `mask`."""

import io
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from clipjax.data.bad import BadRecord
from clipjax.data.features.settings import image_size, struct
from clipjax.data.features.view import Frame, View

IGNORE = 255


class Mask:
    """int32 [S,S], the label of each pixel of the first view; 255 where there is none, as in padding.

    The record's map belongs to the upright image, of which it may be a smaller or larger copy: an array [H,W] of whole
    numbers, or an encoded image of one channel (of a palette its places). Labels are taken from the nearest pixel and
    never mixed. Of a record with several images it is a list of as many.

    Args:
      config: of the run.
      name: of the feature and of its field.
      column: of the record; None: the feature's name.
      follows: the image feature whose first view it moves with.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        column: str | None = None,
        follows: str = "image",
    ):
        self.after = (follows,)
        self.name, self._column, self._follows = name, column or name, follows
        self._size = image_size(config, follows)

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The map, under the feature's name."""
        return {self.name: struct((self._size, self._size), np.int32)}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Raises BadRecord if the record has no map, or something that is none."""
        del rng
        value, number = record.get(self._column), view.image_number
        if isinstance(value, list | tuple) and number is not None and number < len(value):
            value = value[number]
        if value is None:
            raise BadRecord(
                "a column is missing",
                f"the feature {self.name!r} finds no column {self._column!r} in the record, which has "
                f"{', '.join(map(str, record))}",
            )
        return {self.name: move(self._decoded(value), view.frame(self._follows))}

    def _decoded(self, value: Any) -> np.ndarray:
        """A record's map as whole numbers [H,W]."""
        finds = f"the feature {self.name!r} finds in the column {self._column!r}"
        if isinstance(value, bytes | bytearray | memoryview):
            try:
                value = np.asarray(Image.open(io.BytesIO(value)))
            except Exception as error:
                raise BadRecord(
                    "a column has another shape or type", f"{finds} bytes that are no image"
                ) from error
        labels = np.asarray(value)
        if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "biu":
            raise BadRecord(
                "a column has another shape or type",
                f"{finds} {labels.dtype.name} {list(labels.shape)}, but whole numbers [H,W] are needed",
            )
        return labels


def move(labels_HxW: np.ndarray, frame: Frame, ignore: int = IGNORE) -> np.ndarray:
    """A map of the upright image as int32 [S,S] of a view of it, by the nearest pixel.

    Args:
      labels_HxW: whole numbers.
      frame: the view.
      ignore: what padding becomes.
    """
    height, width = labels_HxW.shape
    centres_S = (np.arange(frame.size) + 0.5) / frame.size
    points_Px2 = np.stack(np.meshgrid(centres_S, centres_S), axis=-1).reshape(-1, 2)
    first, last = np.reshape(frame.geometry.shown, (2, 2))
    x_P, y_P = frame.geometry.inverse().points(points_Px2).T
    inside_P = ((points_Px2 > first) & (points_Px2 < last)).all(axis=1)
    inside_P &= (x_P >= 0) & (x_P < 1) & (y_P >= 0) & (y_P < 1)
    columns_P = (x_P[inside_P] * width).astype(np.int64)
    rows_P = (y_P[inside_P] * height).astype(np.int64)
    moved_P = np.full(frame.size**2, ignore, np.int32)
    moved_P[inside_P] = labels_HxW[rows_P, columns_P]
    return moved_P.reshape(frame.size, frame.size)
