"""How a tensor lies in a source and here: pairs of inverse functions, numpy to numpy."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_LARGE, _BLOCK = 2**20, 256


@dataclass(frozen=True)
class Layout:
    """A change of layout.

    Attributes:
      forward: (array of the source, wanted shape) -> array of that shape.
      inverse: the array of the source, from one here.
    """

    forward: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]

    def source_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the source of what has `shape` here."""
        return self.inverse(np.broadcast_to(False, shape)).shape


def permute(*axes: int) -> Layout:
    """Transposes to the given order of axes."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Layout(lambda x, shape: np.transpose(x, axes), lambda x: np.transpose(x, back))


def with_shape(inverse: Callable[[np.ndarray], np.ndarray]) -> Layout:
    """The same numbers in the same order; `inverse` gives them the source's shape."""
    return Layout(lambda x, shape: x.reshape(shape), inverse)


def split_axis(axis: int, parts: int) -> Layout:
    """One axis here is two in the source, of `parts` and the rest: heads. `axis` counts from the end (negative)."""

    def split(x: np.ndarray) -> np.ndarray:
        place = x.ndim + axis
        return x.reshape(*x.shape[:place], parts, x.shape[place] // parts, *x.shape[place + 1 :])

    return with_shape(split)


AS_IS = Layout(lambda x, shape: x, lambda x: x)
# [out, in] -> [in, out]; the outputs may be split here, as heads are: [in, 3, H, d].
LINEAR = Layout(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(len(x), -1).T)
FLAT = with_shape(lambda x: x.reshape(-1))  # a bias [3 W] -> [3, H, d]
ONE = with_shape(lambda x: x.reshape(1))  # [1] -> a scalar
LEADING_1 = with_shape(lambda x: x[None])  # [1, ...] -> [...]

DROP_1 = with_shape(lambda x: x[0])  # [...] -> [1, ...]
CONV = permute(2, 3, 1, 0)  # [out, in, K, K] -> [K, K, in, out]
POINTWISE = Layout(  # [out, in, 1, 1] -> [in, out]
    lambda x, shape: x.reshape(x.shape[:2]).T, lambda x: x.T[:, :, None, None]
)
DEPTHWISE = Layout(  # [C, 1, K, K] -> [K, K, C]
    lambda x, shape: np.transpose(x[:, 0], (1, 2, 0)),
    lambda x: np.transpose(x, (2, 0, 1))[:, None],
)
PATCHES = Layout(  # a linear layer over flattened patches, [out, p * p * 3] -> [p, p, 3, out]
    lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T
)


def fill(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, three times as fast for large transposed matrices.

    It goes in blocks of the axis along which the source jumps furthest, so that what lies side by side there is still
    in the cache when its turn comes.
    """
    if source.ndim < 2 or source.nbytes < _LARGE:
        target[...] = source
        return
    axis = int(np.argmax(np.abs(source.strides)))
    here, there = np.moveaxis(target, axis, 0), np.moveaxis(source, axis, 0)
    for start in range(0, len(here), _BLOCK):
        here[start : start + _BLOCK] = there[start : start + _BLOCK]
