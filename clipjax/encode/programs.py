"""Compiled functions of parameters and rows, run over any number of rows on a mesh."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.mesh import batch_sharding, batch_shards, replicated
from clipjax.models import matmul_precision


class Programs:
    """What `Encoder` and evaluators compile and run: batches of one shape, split over the mesh, in a model's precision.

    Args:
      mesh: where the parameters live.
      dtype: of the model's computation.
    """

    def __init__(self, mesh: Mesh, dtype: str):
        self.mesh, self._dtype = mesh, dtype

    def whole(self, size: int) -> int:
        """The next batch size, at least 1, that the mesh divides."""
        parts = batch_shards(self.mesh)
        return max(math.ceil(size / parts), 1) * parts

    def program(
        self, function: Callable[[Any, Mapping[str, jax.Array]], Any]
    ) -> Callable[[Any, Mapping[str, jax.Array]], Any]:
        """`function(params, batch)`, compiled, in the model's precision, with its result on every device."""

        def apply(params: Any, batch: Mapping[str, jax.Array]) -> Any:
            with matmul_precision(self._dtype):
                return function(params, batch)

        return jax.jit(apply, out_shardings=replicated(self.mesh))

    def apply(
        self,
        program: Callable[[Any, Mapping[str, jax.Array]], Any],
        params: Any,
        batch: Mapping[str, np.ndarray],
        size: int,
    ) -> Any:
        """Runs a program over the rows (at least one) of a batch, `size` of them at a time; the last part is padded.

        Args:
          program: of `program`; gives an array [size, ...], or a tree of such.
          params: given to it.
          batch: field -> array [n, ...].
          size: of `whole`.

        Returns:
          NumPy arrays [n, ...] in the same tree.
        """
        parts = self._parts(program, params, batch, size)
        trees = [jax.tree.map(lambda x, n=n: x[:n], part) for part, n in parts]
        return jax.tree.map(lambda *xs: np.concatenate(xs), *trees)

    def _parts(
        self, program: Callable, params: Any, batch: Mapping[str, np.ndarray], size: int
    ) -> list[tuple[Any, int]]:
        """What a program gives for each part of a batch, in NumPy, and how many of its rows are no padding.

        A part is fetched while the next one runs, so that devices hold no more than two.
        """
        total, parts = len(next(iter(batch.values()))), []
        running: Any = None
        with jax.set_mesh(self.mesh):
            for start in range(0, total, size):
                count = min(size, total - start)
                rows = {k: self._rows(x[start : start + count], size) for k, x in batch.items()}
                started = program(params, rows)
                if running is not None:
                    parts.append((jax.tree.map(np.asarray, running[0]), running[1]))
                running = started, count
        return [*parts, (jax.tree.map(np.asarray, running[0]), running[1])]

    def _rows(self, rows: np.ndarray, size: int) -> jax.Array:
        """A padded batch on the mesh; of several processes, each has all rows and puts those of its own devices."""
        padding = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        rows = np.pad(rows, padding, mode="edge")
        return jax.make_array_from_callback(rows.shape, batch_sharding(self.mesh), rows.__getitem__)
