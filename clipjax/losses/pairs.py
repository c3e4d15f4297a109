"""How the contrastive losses see all pairs of a batch that is split over devices.

Every device keeps its own b = B/N rows of images and meets all B texts, one tile of at most `block_size` texts at a
time. Two layouts bring the texts:

  "gather"  one all-gather of the texts (their gradient comes back as one reduce-scatter);
  "ring"    the text blocks hop from neighbour to neighbour, N - 1 times.

Both give the same values. A tile's logits are recomputed in the backward pass, so no B x B or b x B array is kept.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from clipjax.errors import UserError
from clipjax.registry import nearest

LAYOUTS = ("gather", "ring")
BATCH_AXES = ("data", "fsdp")

# tile(image_bxD, text_cxD, mine_bxc, exists_c) -> (statistics of rows [b], statistics of columns [c]), two trees.
# `mine_bxc` marks the matching pairs, `exists_c` is False for texts of padding.
Tile = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[Any, Any]]


def check_inputs(
    image_BxD: jax.Array, text_BxD: jax.Array, layout: str, block_size: int | None
) -> None:
    """Refuses shapes and settings that do not fit, in one sentence."""
    if image_BxD.ndim != 2 or image_BxD.shape != text_BxD.shape:
        raise UserError(
            "A contrastive loss takes as many images as texts, both [B, D], "
            f"not {list(image_BxD.shape)} and {list(text_BxD.shape)}."
        )
    if layout not in LAYOUTS:
        raise UserError(f"There is no loss layout {layout!r}{nearest(layout, LAYOUTS)}.")
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size must be at least 1, not {block_size}.")


def logits(image_bxD: jax.Array, text_cxD: jax.Array, scale: jax.Array) -> jax.Array:
    """Scale * image @ text.T in float32: full precision where the hardware's default is lower (TF32, bf16)."""
    return scale * jax.lax.dot_general(
        image_bxD,
        text_cxD,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def shard_axes(mesh: Mesh | None) -> tuple[str, ...]:
    """The axes of `mesh` over which a batch is split; none without a mesh."""
    return () if mesh is None else tuple(a for a in BATCH_AXES if a in mesh.shape)


def on_shards(
    function: Callable[..., Any], mesh: Mesh | None, batch: int, arrays: int
) -> Callable[..., Any]:
    """`function(*arrays, *scalars)` run on every device with its rows of the first `arrays` arguments.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    axes = shard_axes(mesh)
    if not axes:
        return function
    parts = math.prod(mesh.shape[a] for a in axes)
    if batch % parts:
        raise UserError(
            f"A batch of {batch} does not divide over {parts} devices; choose a batch size that {parts} divides."
        )

    def call(*args: jax.Array) -> Any:
        specs = tuple(
            PartitionSpec(axes) if i < arrays else PartitionSpec() for i in range(len(args))
        )
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )
        return mapped(*args)

    return call


def scan_tiles(
    tile: Tile,
    image_bxD: jax.Array,
    text_bxD: jax.Array,
    axes: tuple[str, ...],
    layout: str,
    block_size: int | None,
) -> tuple[Any, Any]:
    """Applies `tile` to this device's images and all B texts. Called on every device with its own rows.

    Returns:
      (row statistics stacked over the T tiles [T, b], column statistics in the batch's order [B]); both are what this
      device's rows contribute, nothing is reduced over devices.
    """
    b = image_bxD.shape[0]
    count = jax.lax.axis_size(axes) if axes else 1
    me = jax.lax.axis_index(axes) if axes else 0
    row_b = me * b + jnp.arange(b)
    tile = jax.checkpoint(tile)

    def block(text_nxD: jax.Array, start: jax.Array | int) -> tuple[Any, Any]:
        """Tiles of n texts, the first of which is column `start` of the batch."""
        n, width = text_nxD.shape
        c = min(block_size or n, n)
        tiles = -(-n // c)
        text_TxcxD = jnp.pad(text_nxD, ((0, tiles * c - n), (0, 0))).reshape(tiles, c, width)
        column_Txc = jnp.arange(tiles * c).reshape(tiles, c)

        def step(_: None, item: tuple[jax.Array, jax.Array]) -> tuple[None, Any]:
            text_cxD, column_c = item
            mine_bxc = row_b[:, None] == start + column_c
            return None, tile(image_bxD, text_cxD, mine_bxc, column_c < n)

        _, (rows, columns) = jax.lax.scan(step, None, (text_TxcxD, column_Txc))
        return rows, jax.tree.map(lambda x: x.reshape(-1)[:n], columns)

    if layout == "gather" or count == 1:
        return block(jax.lax.all_gather(text_bxD, axes, tiled=True) if axes else text_bxD, 0)

    def hop(text: jax.Array, k: jax.Array) -> tuple[jax.Array, Any]:
        result = block(text, (me - k) % count * b)
        return jax.lax.ppermute(text, axes, [(i, (i + 1) % count) for i in range(count)]), result

    _, (rows, columns) = jax.lax.scan(hop, text_bxD, jnp.arange(count))
    hop_of_block = (me - jnp.arange(count)) % count
    return (
        jax.tree.map(lambda x: x.reshape(-1, b), rows),
        jax.tree.map(lambda x: x[hop_of_block].reshape(-1), columns),
    )
