"""Statistics of all pairs of a batch that is split over devices, with a hand-written backward pass.

A contrastive loss needs, of the B x B logits, only sums along their rows and columns: the log-sum of a row's
exponentials, the logits of its positives, ... `pair_statistics` forms them tile by tile and keeps nothing larger than
the sums. Its backward pass forms each tile once more and takes both towers' gradients from it. With b rows a device
that is 2 b B D FLOPs forward and 6 b B D backward, 8 b B D together: one dot product a pair for the logit, one to form
it again, one for each gradient (a loss that stored the logits would need 6 b B D, and b B words).

What a tile adds, and how its sums' gradients become the gradient of its logits, is the business of a `Kernel`; the
losses around are plain functions of the statistics, differentiated by JAX.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from clipjax.errors import UserError
from clipjax.losses.tiles import BLOCK_SIZE, LAYOUTS, Tiling, all_gather, reduce_scatter, visit_all
from clipjax.mesh import network_groups
from clipjax.registry import nearest

BATCH_AXES = ("data", "fsdp")
PRECISIONS = {p.name.lower(): p for p in jax.lax.Precision}

Scalars = Mapping[str, jax.Array]
Statistics = dict[str, jax.Array]

# The start of a maximum. Finite, so that the difference of two of them is 0 and not NaN.
LOWEST = float(jnp.finfo(jnp.float32).min)


class Pairs(NamedTuple):
    """One tile: the pairs of r rows and c columns.

    Attributes:
      similarity_rxc: float32 dot products of the embeddings, not scaled.
      valid_rxc: False for pairs that do not exist (padding, or left out by a mask).
      rows, columns: what is known about each row [r, ...] and each column [c, ...].
      scalars: float32 scalars of the loss.
    """

    similarity_rxc: jax.Array
    valid_rxc: jax.Array
    rows: Mapping[str, Any]
    columns: Mapping[str, Any]
    scalars: Scalars

    def without(self, left_out: Callable[[Any, Any], jax.Array] | None) -> "Pairs":
        """The same tile; pairs for which `left_out(rows, columns)` is True are not `valid`."""
        if left_out is None:
            return self
        return self._replace(valid_rxc=self.valid_rxc & ~left_out(self.rows, self.columns))


class Kernel(Protocol):
    """What a loss wants to know of a tile. Hashable, since it is static.

    Statistics called `max`, `best_positive` and `best_negative` are maxima of similarities. `sum_exp` is the sum of
    exp(scale (s - max)) over similarities s, and `offset` the sum of (s - max) with those weights. All others are sums.
    """

    def empty(self, rows: int, columns: int) -> tuple[Statistics, Statistics]:
        """The statistics of so many rows and columns without any pair."""
        ...

    def measure(self, pairs: Pairs) -> tuple[Statistics, Statistics]:
        """What a tile's pairs add to the statistics of its rows and of its columns."""
        ...

    def similarity_gradient(self, pairs: Pairs) -> jax.Array:
        """Gradient with respect to the similarities, [r, c].

        `pairs.rows` and `pairs.columns` then also hold `statistics`, the final ones, and `gradient`, theirs.
        """
        ...

    def scalar_gradients(self, statistics: Statistics, gradient: Statistics) -> Scalars:
        """Gradient with respect to the scalars that comes through the rows' (or the columns') final statistics."""
        ...


def make_tiling(
    mesh: Mesh | None,
    layout: str,
    block_size: int | None,
    precision: str,
    rows: int,
    columns: int,
) -> Tiling:
    """Checks how a loss is to be computed.

    Rows and columns are split over the axes of the batch, and over the other axes of the mesh as well if they divide:
    devices that hold the same rows (of a `tensor` axis) then share the work.

    Raises:
      UserError: an unknown layout or precision, a block size below 1, or sizes that do not divide over the mesh.
    """
    if layout not in LAYOUTS:
        raise UserError(f"There is no loss layout {layout!r}{nearest(layout, LAYOUTS)}.")
    if precision not in PRECISIONS:
        raise UserError(f"There is no precision {precision!r}{nearest(precision, PRECISIONS)}.")
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size must be at least 1, not {block_size}.")
    axes: tuple[str, ...] = ()
    if mesh is not None:
        axes = tuple(a for a in BATCH_AXES if a in mesh.shape)
        everywhere = axes + tuple(a for a in mesh.axis_names if a not in axes)
        for choice in (everywhere, axes):
            parts = math.prod(mesh.shape[a] for a in choice)
            if rows % parts == 0 and columns % parts == 0:
                axes = tuple(a for a in choice if mesh.shape[a] > 1)
                break
        else:
            odd = rows if rows % parts else columns
            raise UserError(
                f"A batch of {odd} does not divide over {parts} devices; choose a batch size that {parts} divides."
            )
    groups = network_groups(mesh, axes) if mesh is not None and axes else 1
    return Tiling(
        mesh if axes else None,
        axes,
        layout,
        block_size or BLOCK_SIZE,
        PRECISIONS[precision],
        groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def pair_statistics(
    kernel: Kernel,
    tiling: Tiling,
    image_RxD: jax.Array,
    text_CxD: jax.Array,
    scalars: Scalars,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
) -> tuple[Statistics, Statistics]:
    """Statistics of every row and every column over all R x C pairs.

    Differentiable once, in reverse, with respect to the embeddings and the scalars; `rows` and `columns` (and maxima)
    are constants.

    Args:
      kernel: what is measured.
      tiling: how the pairs are spread over devices, from `make_tiling`.
      image_RxD: float32 rows.
      text_CxD: float32 columns.
      scalars: float32; `scale` at least.
      rows: arrays [R, ...]; `valid`, bool [R], at least.
      columns: arrays [C, ...]; `valid`, bool [C], at least.

    Returns:
      Dicts of float32 [R] and [C]. `sum_exp` is replaced by `log_sum_exp`, its logarithm, and `offset` by the mean of
      s - max.
    """
    return _forward(kernel, tiling, image_RxD, text_CxD, scalars, rows, columns)[0]


def _forward(
    kernel: Kernel,
    tiling: Tiling,
    image_RxD: jax.Array,
    text_CxD: jax.Array,
    scalars: Scalars,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
) -> tuple[Any, Any]:
    def shard(rows: Any, columns: Any, scalars: Scalars) -> Any:
        def visit(row: Any, column: Any, row_sum: Any, column_sum: Any) -> tuple[Any, Any]:
            of_row, of_column = kernel.measure(_pairs(row, column, scalars, tiling))
            merge = functools.partial(_merge, scale=scalars["scale"])
            return merge(row_sum, of_row), merge(column_sum, of_column)

        whole = {}  # the gathered texts, kept for the backward pass
        if tiling.layout == "gather" and tiling.axes:
            whole = {"embedding": all_gather(columns["embedding"], tiling.axes)}
        row_stats, column_stats = visit_all(
            visit,
            tiling,
            rows,
            {k: v for k, v in columns.items() if k not in whole},
            *kernel.empty(rows["valid"].size, columns["valid"].size),
            functools.partial(_collect, scale=scalars["scale"]),
            whole,
        )
        return (_finish(row_stats), _finish(column_stats)), whole

    rows = {**rows, "embedding": image_RxD}
    columns = {**columns, "embedding": text_CxD}
    split, everywhere = PartitionSpec(tiling.axes), PartitionSpec()
    statistics, whole = _on_shards(
        shard, tiling, (split, split, everywhere), ((split, split), everywhere)
    )(rows, columns, scalars)
    return statistics, (rows, columns, scalars, statistics, whole)


def _backward(kernel: Kernel, tiling: Tiling, kept: Any, gradient: Any) -> tuple[Any, ...]:
    product = functools.partial(
        jax.lax.dot_general, precision=tiling.precision, preferred_element_type=jnp.float32
    )

    def shard(rows: Any, columns: Any, scalars: Scalars, whole: Any) -> tuple[jax.Array, jax.Array]:
        def visit(
            row: Any, column: Any, image_rxD: jax.Array, text_cxD: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            gradient_rxc = kernel.similarity_gradient(_pairs(row, column, scalars, tiling))
            of_image_rxD = product(gradient_rxc, column["embedding"], (((1,), (0,)), ((), ())))
            of_text_cxD = product(gradient_rxc, row["embedding"], (((0,), (0,)), ((), ())))
            return image_rxD + of_image_rxD, text_cxD + of_text_cxD

        return visit_all(
            visit,
            tiling,
            rows,
            {k: v for k, v in columns.items() if k not in whole},
            jnp.zeros_like(rows["embedding"]),
            jnp.zeros_like(columns["embedding"]),
            reduce_scatter,
            whole,
        )

    rows, columns, scalars, statistics, whole = kept
    of_rows, of_columns = (
        kernel.scalar_gradients(*side) for side in zip(statistics, gradient, strict=True)
    )
    rows = {**rows, "statistics": statistics[0], "gradient": gradient[0]}
    columns = {**columns, "statistics": statistics[1], "gradient": gradient[1]}
    split, everywhere = PartitionSpec(tiling.axes), PartitionSpec()
    image_RxD, text_CxD = _on_shards(
        shard, tiling, (split, split, everywhere, everywhere), (split, split)
    )(rows, columns, scalars, whole)
    return image_RxD, text_CxD, {k: of_rows[k] + of_columns[k] for k in scalars}, None, None


pair_statistics.defvjp(_forward, _backward)


def _on_shards(function: Any, tiling: Tiling, in_specs: Any, out_specs: Any) -> Any:
    """`function` on every device with its share; as it is where there is one device."""
    if not tiling.axes:
        return function
    # Both passes are written out, so nothing is differentiated through the map and no replication need be tracked.
    return jax.shard_map(
        function, mesh=tiling.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _pairs(row: Any, column: Any, scalars: Scalars, tiling: Tiling) -> Pairs:
    similarity_rxc = jax.lax.dot_general(
        row["embedding"],
        column["embedding"],
        (((1,), (1,)), ((), ())),
        precision=tiling.precision,
        preferred_element_type=jnp.float32,
    )
    valid_rxc = row["valid"][:, None] & column["valid"]
    return Pairs(similarity_rxc, valid_rxc, row, column, scalars)


_MAXIMA = ("max", "best_positive", "best_negative")


def _merge(a: Statistics, b: Statistics, scale: jax.Array) -> Statistics:
    """The statistics of the pairs of both."""
    maxima = {name: jnp.maximum(a[name], b[name]) for name in _MAXIMA if name in a}
    a, b = (_below(s, maxima.get("max"), scale) for s in (a, b))
    return maxima | {name: a[name] + b[name] for name in a if name not in maxima}


def _below(statistics: Statistics, top: jax.Array | None, scale: jax.Array) -> Statistics:
    """The same pairs' statistics with `sum_exp` and `offset` relative to a higher maximum."""
    if top is None:
        return statistics
    fall = jnp.maximum(statistics["max"] - top, LOWEST)  # LOWEST twice would be infinite
    shrink = jnp.exp(scale * fall)
    return statistics | {
        "sum_exp": shrink * statistics["sum_exp"],
        "offset": shrink * (statistics["offset"] + statistics["sum_exp"] * fall),
    }


def _collect(statistics: Statistics, axes: tuple[str, ...], scale: jax.Array) -> Statistics:
    """Statistics [C] of this device's rows only -> of all rows, [c] of this device's columns."""
    if not statistics:
        return statistics
    size = next(iter(statistics.values())).size // jax.lax.axis_size(axes)
    first = jax.lax.axis_index(axes) * size
    maxima = {name: jax.lax.pmax(statistics[name], axes) for name in _MAXIMA if name in statistics}
    statistics = _below(statistics, maxima.get("max"), scale)
    sums = reduce_scatter({k: v for k, v in statistics.items() if k not in maxima}, axes)
    return sums | {k: jax.lax.dynamic_slice_in_dim(v, first, size) for k, v in maxima.items()}


def _finish(statistics: Statistics) -> Statistics:
    """`sum_exp` becomes its logarithm and `offset` a mean; without any pair -inf and 0, and `max` is 0."""
    if "sum_exp" not in statistics:
        return statistics
    done = dict(statistics)
    sum_exp = done.pop("sum_exp")
    some = sum_exp > 0
    return done | {
        "log_sum_exp": jnp.log(sum_exp),
        "offset": done["offset"] / jnp.where(some, sum_exp, 1.0),
        "max": jnp.where(some, done["max"], 0.0),
    }
