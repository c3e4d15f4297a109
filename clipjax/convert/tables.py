"""Declarative, bijective key tables between a checkpoint format's tensors and Flax parameters.

A table is a list of rows (source key, target path, transform). `{i}` and the like in both stand for
a number. Reading refuses unless every source key is consumed or listed as droppable and every
parameter is supplied in its shape; writing is the same table read from right to left.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clipjax.errors import UserError

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Transform:
    """A change of layout and its inverse, numpy to numpy, given arrays of the right rank."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def permute(*axes: int) -> Transform:
    """Transposes to the given order of axes."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Transform(lambda x: np.transpose(x, axes), lambda x: np.transpose(x, back))


def _without_last_two(x: np.ndarray) -> np.ndarray:
    return np.squeeze(x, axis=(x.ndim - 2, x.ndim - 1))


IDENTITY = Transform(lambda x: x, lambda x: x)
LINEAR = permute(1, 0)  # [out, in] -> [in, out]
CONV = permute(2, 3, 1, 0)  # [out, in, K, K] -> [K, K, in, out]
POINTWISE = Transform(  # [out, in, 1, 1] -> [in, out]
    lambda x: LINEAR.forward(_without_last_two(x)),
    lambda x: LINEAR.inverse(x)[:, :, None, None],
)
DEPTHWISE = Transform(  # [C, 1, K, K] -> [K, K, C]
    lambda x: np.transpose(np.squeeze(x, axis=1), (1, 2, 0)),
    lambda x: np.transpose(x, (2, 0, 1))[:, None],
)


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression for a key; a placeholder that comes twice must have one number."""
    seen: set[str] = set()
    pattern = ""
    for index, piece in enumerate(_PLACEHOLDER.split(template)):
        if index % 2 == 0:
            pattern += re.escape(piece)
        elif piece in seen:
            pattern += f"(?P={piece})"
        else:
            pattern += rf"(?P<{piece}>0|[1-9][0-9]*)"
            seen.add(piece)
    return re.compile(pattern)


@dataclass(frozen=True)
class Row:
    """One kind of tensor: its key in the source, its path (`a/b`) in the parameters, its layout."""

    source: str
    target: str
    transform: Transform = IDENTITY


class KeyTable:
    """The rows of one format.

    Args:
        what: what the source holds, for error messages.
        rows: source and target of a row must have the same placeholders.
        droppable: source keys, with placeholders, that carry nothing that the model uses.
    """

    def __init__(self, what: str, rows: Iterable[Row], droppable: Iterable[str] = ()):
        self.what = what
        self.rows = tuple(rows)
        for row in self.rows:
            if set(_PLACEHOLDER.findall(row.source)) != set(_PLACEHOLDER.findall(row.target)):
                raise ValueError(f"{row.source} and {row.target} differ in their placeholders")
        self._from_source = [(_pattern(row.source), row.target, row) for row in self.rows]
        self._from_target = [(_pattern(row.target), row.source, row) for row in self.rows]
        self._droppable = [_pattern(template) for template in droppable]

    def droppable(self, key: str) -> bool:
        """Whether a source key is known and carries nothing that the model uses."""
        return any(pattern.fullmatch(key) for pattern in self._droppable)

    def target(self, key: str) -> tuple[str, Row] | None:
        """The path that a source key maps to, with its row; None if no row matches."""
        return _lookup(self._from_source, key)

    def source(self, path: str) -> tuple[str, Row] | None:
        """The source key that a path maps to, with its row; None if no row matches."""
        return _lookup(self._from_target, path)

    def to_params(self, tensors: Mapping[str, np.ndarray], expected: Any) -> dict[str, Any]:
        """Flax parameters from source tensors.

        Args:
            tensors: every tensor of the source.
            expected: the parameters' tree with shapes and dtypes (of `jax.eval_shape`, unboxed).

        Returns:
            A nested dict of numpy arrays, in the shapes and dtypes of `expected`.

        Raises:
            UserError: unknown keys, missing keys, wrong shapes or kinds of number; all are listed.
        """
        wanted = flatten_dict(expected, sep="/")
        params: dict[str, np.ndarray] = {}
        missing = set(wanted)
        unknown: list[str] = []
        wrong: list[str] = []
        for key, value in tensors.items():
            found = self.target(key)
            if found is None or found[0] not in wanted:
                if not self.droppable(key):
                    unknown.append(key)
                continue
            path, row = found
            missing.discard(path)
            shape = row.transform.inverse(np.empty(wanted[path].shape, bool)).shape
            if value.shape != shape:
                wrong.append(f"{key} is {list(value.shape)} instead of {list(shape)}")
            elif not jnp.issubdtype(value.dtype, np.floating):
                wrong.append(f"{key} is {value.dtype} instead of a floating type")
            else:
                array = row.transform.forward(value)
                params[path] = np.ascontiguousarray(array, wanted[path].dtype)
        self._refuse(unknown, [self._name(path) for path in wanted if path in missing], wrong)
        return unflatten_dict(params, sep="/")

    def from_params(self, params: Any) -> dict[str, np.ndarray]:
        """Source tensors from Flax parameters: the inverse of `to_params`, without droppable keys.

        Raises:
            UserError: parameters that the format has no key for; all are listed.
        """
        tensors: dict[str, np.ndarray] = {}
        unknown: list[str] = []
        for path, value in flatten_dict(params, sep="/").items():
            found = self.source(path)
            if found is None:
                unknown.append(path)
                continue
            key, row = found
            tensors[key] = np.ascontiguousarray(row.transform.inverse(np.asarray(value)))
        self._refuse(unknown, [], [])
        return tensors

    def _name(self, path: str) -> str:
        """The source key of a missing parameter, or its path if the table has no row for it."""
        found = self.source(path)
        return found[0] if found else path

    def _refuse(self, unknown: list[str], missing: list[str], wrong: list[str]) -> None:
        parts = [
            f"{label}: {', '.join(names)}"
            for label, names in (("missing", missing), ("unknown", unknown), ("wrong", wrong))
            if names
        ]
        if parts:
            raise UserError(f"This is not {self.what}; {'; '.join(parts)}.")


def _lookup(entries: list[tuple[re.Pattern[str], str, Row]], name: str) -> tuple[str, Row] | None:
    """The first entry that matches: its other side with the numbers filled in, and its row."""
    for pattern, template, row in entries:
        match = pattern.fullmatch(name)
        if match:
            return template.format(**match.groupdict()), row
    return None
