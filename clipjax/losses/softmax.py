"""Softmax contrastive loss (InfoNCE): Radford et al. 2021, figure 3."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.losses.pairs import check_inputs, logits, on_shards, scan_tiles, shard_axes


def softmax_contrastive(
    image_BxD: jax.Array,
    text_BxD: jax.Array,
    logit_scale: jax.Array | float,
    *,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean of the image-to-text and the text-to-image cross-entropy over the whole (global) batch.

    With S = logit_scale * image @ text.T, the loss is mean_i [ (lse_j S_ij + lse_j S_ji) / 2 - S_ii ]. Value and
    gradients do not depend on the mesh, the layout or the block size.

    Cost on each of N devices, with b = B / N rows: 12 b B D FLOPs with the backward pass (each tile's logits are
    computed twice), b x block_size logits at a time, 2 B D words moved ("gather"; it holds all texts, B x D) or
    3 B D ("ring").

    Args:
      image_BxD: L2-normalised, rows may be split over the `data` and `fsdp` axes of `mesh`.
      text_BxD: likewise; row i belongs to image i.
      logit_scale: the scale itself, not its logarithm.
      mesh: the mesh over which the batch is split; None for one device.
      layout: "gather" or "ring", see clipjax/losses/pairs.py.
      block_size: texts of one tile, default all that a device holds at once; need not divide B.

    Returns:
      float32 scalar and metrics: `image_to_text_accuracy` and `text_to_image_accuracy` within the batch.

    Raises:
      UserError: shapes that differ, a batch that does not divide over the mesh, an unknown layout.
    """
    check_inputs(image_BxD, text_BxD, layout, block_size)
    axes = shard_axes(mesh)
    batch = image_BxD.shape[0]

    def shard(image_bxD: jax.Array, text_bxD: jax.Array, scale: jax.Array) -> tuple[jax.Array, ...]:
        def tile(image_bxD, text_cxD, mine_bxc, exists_c):
            logits_bxc = logits(image_bxD, text_cxD, scale)
            seen_bxc = jnp.where(exists_c, logits_bxc, -jnp.inf)
            rivals_bxc = jax.lax.stop_gradient(jnp.where(mine_bxc, -jnp.inf, seen_bxc))
            rows = {"lse": jax.nn.logsumexp(seen_bxc, axis=1), "rival": rivals_bxc.max(axis=1)}
            columns = {"lse": jax.nn.logsumexp(logits_bxc, axis=0), "rival": rivals_bxc.max(axis=0)}
            return rows, columns

        rows, columns = scan_tiles(tile, image_bxD, text_bxD, axes, layout, block_size)
        own_b = scale * jnp.sum(image_bxD * text_bxD, axis=1)
        row_lse_b = jax.nn.logsumexp(rows["lse"], axis=0)
        column_lse_B = _logsumexp_over(columns["lse"], axes)
        rival_B = jax.lax.pmax(columns["rival"], axes) if axes else columns["rival"]
        first = jax.lax.axis_index(axes) * own_b.size if axes else 0
        rival_b = jax.lax.dynamic_slice_in_dim(rival_B, first, own_b.size)
        # Each device adds its rows, and its share of the columns, exactly once.
        column_lse_b = jax.lax.dynamic_slice_in_dim(column_lse_B, first, own_b.size)
        sums = (
            jnp.sum(0.5 * (row_lse_b + column_lse_b) - own_b),
            jnp.sum(own_b > rows["rival"].max(axis=0), dtype=jnp.float32),
            jnp.sum(own_b > rival_b, dtype=jnp.float32),
        )
        return tuple((jax.lax.psum(s, axes) if axes else s) / batch for s in sums)

    scale = jnp.asarray(logit_scale, jnp.float32)
    inputs = (image_BxD.astype(jnp.float32), text_BxD.astype(jnp.float32))
    loss, image_to_text, text_to_image = on_shards(shard, mesh, batch, arrays=2)(*inputs, scale)
    return loss, {"image_to_text_accuracy": image_to_text, "text_to_image_accuracy": text_to_image}


def _logsumexp_over(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Elementwise log-sum-exp over devices. The maximum only shifts, so it needs no gradient."""
    if not axes:
        return x
    top = jax.lax.pmax(jax.lax.stop_gradient(x), axes)
    return top + jnp.log(jax.lax.psum(jnp.exp(x - top), axes))


def softmax(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`softmax_contrastive` as an entry of a config's losses."""
    del batch
    return softmax_contrastive(
        outputs["image_embedding"],
        outputs["text_embedding"],
        outputs["logit_scale"],
        mesh=mesh,
        layout=layout,
        block_size=block_size,
    )
