"""How every row meets every column: one tile at a time, over one device's blocks and over all devices.

Rows (images) stay where they are; columns (texts) come to them in one of two layouts:

  "gather"  one all-gather brings all columns, and one reduction brings home what they have accumulated: fewest elements
            communicated, but every device holds all C columns;
  "ring"    blocks of C / N columns hop from neighbour to neighbour, with what they have accumulated: one block at a
            time, whatever C is. Where devices stand in groups with a slow network between them (slices of a TPU, hosts
            of GPUs), a block visits all of a group before it goes on to the next: of N - 1 hops only one less than
            there are groups are slow, and in those all devices send at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

LAYOUTS = ("gather", "ring")
BLOCK_SIZE = 1024

Tree = Any
Route = list[tuple[int, int]]

# visit(row_r, column_c, row_sum_r, column_sum_c) -> (row_sum_r, column_sum_c): trees of arrays with r or c in front.
Visit = Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]]


class Tiling(NamedTuple):
    """How the pairs are spread over devices and cut into tiles.

    Attributes:
      mesh: the device mesh, None for one device.
      axes: the mesh axes over which rows and columns are split; together they have N devices.
      layout: "gather" or "ring".
      block_size: most rows, and most columns, of one tile.
      precision: of the tile's matrix products.
      groups: the devices, in the order of the axes, are so many equal runs with a fast network within each.
    """

    mesh: Mesh | None
    axes: tuple[str, ...]
    layout: str
    block_size: int
    precision: jax.lax.Precision
    groups: int = 1


def sweep(
    visit: Visit, rows: Tree, columns: Tree, row_sums: Tree, column_sums: Tree, block_size: int
) -> tuple[Tree, Tree]:
    """Visits all pairs of this device's rows and the given columns, tile by tile.

    Blocks are of equal size, so the last one may be padded; padding is not `valid`.
    """
    row_blocks, column_blocks = _Blocks(rows, block_size), _Blocks(columns, block_size)
    rows, columns = row_blocks.cut(rows), column_blocks.cut(columns)
    tiles = row_blocks.count * column_blocks.count

    # Sums are carried and changed in place: as a scan's inputs and outputs they would be there twice.
    def one_tile(sums: tuple[Tree, Tree], tile: jax.Array) -> tuple[tuple[Tree, Tree], None]:
        j, i = jnp.divmod(tile, row_blocks.count)
        row_sums, column_sums = sums
        found = visit(_at(rows, i), _at(columns, j), _at(row_sums, i), _at(column_sums, j))
        return (_put(row_sums, i, found[0]), _put(column_sums, j, found[1])), None

    starts = row_blocks.cut(row_sums), column_blocks.cut(column_sums)
    (row_sums, column_sums), _ = jax.lax.scan(one_tile, starts, jnp.arange(tiles))
    return row_blocks.join(row_sums), column_blocks.join(column_sums)


def _at(tree: Tree, block: jax.Array) -> Tree:
    return jax.tree.map(lambda x: x[block], tree)


def _put(tree: Tree, block: jax.Array, values: Tree) -> Tree:
    return jax.tree.map(lambda x, value: x.at[block].set(value), tree, values)


class _Blocks:
    """Cuts arrays [n, ...] into [count, size, ...] and joins them again."""

    def __init__(self, tree: Tree, block_size: int):
        self.length = jax.tree.leaves(tree)[0].shape[0]
        self.count = -(-self.length // block_size)
        self.size = -(-self.length // self.count)

    def cut(self, tree: Tree) -> Tree:
        """Padding is zeros: False where it says what is valid."""
        padding = self.count * self.size - self.length

        def cut(x: jax.Array) -> jax.Array:
            if padding:
                x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
            return jnp.asarray(x).reshape(self.count, self.size, *x.shape[1:])

        return jax.tree.map(cut, tree)

    def join(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: self.length], tree)


def visit_all(
    visit: Visit,
    tiling: Tiling,
    rows: Tree,
    columns: Tree,
    row_sums: Tree,
    column_sums: Tree,
    collect: Callable[[Tree, tuple[str, ...]], Tree],
    gathered: Tree = (),
) -> tuple[Tree, Tree]:
    """Every row of every device meets every column of every device. Called on each device with its own share.

    Args:
      visit: what a tile adds to its rows' and its columns' sums.
      tiling: axes, layout and block size.
      rows: this device's rows, a tree of [b, ...].
      columns: this device's columns, a dict of [c, ...].
      row_sums: what the rows start from.
      column_sums: what the columns start from, neutral: it is started from on every device.
      collect: adds up whole [C, ...] column sums over devices and returns this device's [c, ...].
      gathered: columns that this device has whole already ("gather" only).

    Returns:
      The sums of this device's rows and of its columns over all pairs.
    """
    axes, block_size = tiling.axes, tiling.block_size
    devices = jax.lax.axis_size(axes) if axes else 1
    if devices == 1:
        return sweep(visit, rows, columns, row_sums, column_sums, block_size)

    if tiling.layout == "gather":
        whole = all_gather(columns, axes) | dict(gathered)
        starts = jax.tree.map(lambda x: jnp.tile(x, (devices,) + (1,) * (x.ndim - 1)), column_sums)
        row_sums, sums = sweep(visit, rows, whole, row_sums, starts, block_size)
        return row_sums, collect(sums, axes)

    inside, across, home = _routes(devices, tiling.groups)

    def send(tree: Tree, route: Route) -> Tree:
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, route), tree)

    def hop(carry: tuple[Tree, Tree, Tree], route: Route) -> tuple[Tree, Tree, Tree]:
        columns, row_sums, column_sums = carry
        arriving = send(
            columns, route
        )  # needs nothing of the tiles below, so it can travel meanwhile
        row_sums, column_sums = sweep(visit, rows, columns, row_sums, column_sums, block_size)
        return arriving, row_sums, send(column_sums, route)

    def repeat(step: Callable[[Any], Any], carry: Any, times: int) -> Any:
        return (
            jax.lax.scan(lambda c, _: (step(c), None), carry, length=times)[0] if times else carry
        )

    def tour(carry: Any) -> Any:
        """From device to device until the last of a group, whose tiles remain to be visited."""
        return repeat(lambda c: hop(c, inside), carry, devices // tiling.groups - 1)

    carry = (columns, row_sums, column_sums)
    carry = repeat(lambda c: hop(tour(c), across), carry, tiling.groups - 1)
    columns, row_sums, column_sums = tour(carry)
    row_sums, column_sums = sweep(visit, rows, columns, row_sums, column_sums, block_size)
    return row_sums, send(column_sums, home)


def _routes(devices: int, groups: int) -> tuple[Route, Route, Route]:
    """(sender, receiver) pairs: to the next of a group, to the next group, and home after all have been visited."""
    size = devices // groups
    place = [divmod(i, size) for i in range(devices)]

    def route(group_step: int, step: int) -> Route:
        return [
            (i, (g + group_step) % groups * size + (p + step) % size)
            for i, (g, p) in enumerate(place)
        ]

    # A block has made size - 1 steps in each group, and groups - 1 steps between groups.
    return route(0, 1), route(1, 0), route(1, groups)


def all_gather(tree: Tree, axes: tuple[str, ...]) -> Tree:
    """This device's arrays [c, ...] and everyone else's, [C, ...]."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), tree)


def reduce_scatter(tree: Tree, axes: tuple[str, ...]) -> Tree:
    """Sums [C, ...] over devices; each keeps its own [c, ...]."""
    return jax.tree.map(
        lambda x: jax.lax.psum_scatter(x, axes, scatter_dimension=0, tiled=True), tree
    )
