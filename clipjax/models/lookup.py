"""Rows of a table that is split over devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from clipjax.mesh import RULES, batch_shards

_ROWS, _COLUMNS = dict(RULES)["vocab"], dict(RULES)["embed"]
_BATCH = dict(RULES)["batch"]


def lookup(table_VxW: jax.Array, ids_BxL: jax.Array) -> jax.Array:
    """`table[ids]`, [B, L, W], for a table whose rows and columns, and ids whose samples, are split over a mesh.

    Left to itself XLA may look up the tokens of all samples on every device ("involuntary full rematerialization").
    Here each device looks up its columns for the samples of its `fsdp` group, of its rows of the table only, and hands
    the columns back to whom the samples belong: B L W / N words of memory a device, and as many moved, for any N.

    The mesh is the ambient one (`jax.set_mesh`); what does not divide is left to XLA.

    Args:
      table_VxW: the table.
      ids_BxL: int32.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows, columns = table_VxW.shape
    split_rows = not mesh.empty and mesh.shape[_ROWS] > 1 and rows % mesh.shape[_ROWS] == 0
    split_columns = (
        not mesh.empty and mesh.shape[_COLUMNS] > 1 and columns % mesh.shape[_COLUMNS] == 0
    )
    if not (split_rows or split_columns) or len(ids_BxL) % batch_shards(mesh):
        return table_VxW[ids_BxL]

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        if split_columns:
            ids = jax.lax.all_gather(ids, _COLUMNS, tiled=True)
        if split_rows:
            ids = ids - jax.lax.axis_index(_ROWS) * len(table)
            here = (ids >= 0) & (ids < len(table))
            found = jnp.where(here[..., None], table[jnp.clip(ids, 0, len(table) - 1)], 0)
            found = jax.lax.psum(found, _ROWS)
        else:
            found = table[ids]
        if split_columns:
            found = jax.lax.all_to_all(found, _COLUMNS, 0, found.ndim - 1, tiled=True)
        return found

    where = PartitionSpec(_ROWS if split_rows else None, _COLUMNS if split_columns else None)
    batch = PartitionSpec(_BATCH)
    return jax.shard_map(local, in_specs=(where, batch), out_specs=batch)(table_VxW, ids_BxL)
