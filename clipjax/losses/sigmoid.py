"""Sigmoid contrastive loss: Zhai et al. 2023 (SigLIP), equation 1 and algorithm 1."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.errors import UserError
from clipjax.losses.pairs import check_inputs, logits, on_shards, scan_tiles, shard_axes


def sigmoid_contrastive(
    image_BxD: jax.Array,
    text_BxD: jax.Array,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    *,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Every pair of the global batch is a binary decision: -1/B sum_ij log sigmoid(z_ij (t x_i . y_j + b)).

    z is +1 for the matching pair and -1 for all others. Value and gradients do not depend on the mesh, the layout
    or the block size. Cost on each of N devices: 8 b B D FLOPs with the backward pass (b = B / N), b x block_size
    logits at a time, 2 B D words moved ("gather") or 3 B D ("ring").

    Args:
      image_BxD: L2-normalised, rows may be split over the `data` and `fsdp` axes of `mesh`.
      text_BxD: likewise; row i belongs to image i.
      logit_scale: the scale t itself, not its logarithm.
      logit_bias: the bias b.
      mesh: the mesh over which the batch is split; None for one device.
      layout: "gather" or "ring", see clipjax/losses/pairs.py.
      block_size: texts of one tile, default all that a device holds at once; need not divide B.

    Returns:
      float32 scalar and metrics: `positive_logit` (mean over matching pairs) and `negative_logit` (over the others;
      absent where B is 1).

    Raises:
      UserError: shapes that differ, a batch that does not divide over the mesh, an unknown layout.
    """
    check_inputs(image_BxD, text_BxD, layout, block_size)
    axes = shard_axes(mesh)
    batch = image_BxD.shape[0]

    def shard(
        image_bxD: jax.Array, text_bxD: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, ...]:
        def tile(image_bxD, text_cxD, mine_bxc, exists_c):
            logits_bxc = logits(image_bxD, text_cxD, scale) + bias
            losses_bxc = jax.nn.softplus(jnp.where(mine_bxc, -logits_bxc, logits_bxc))
            rows = {
                "loss": jnp.sum(losses_bxc, axis=1, where=exists_c),
                "logit": jax.lax.stop_gradient(jnp.sum(logits_bxc, axis=1, where=exists_c)),
            }
            return rows, {}

        rows, _ = scan_tiles(tile, image_bxD, text_bxD, axes, layout, block_size)
        own = scale * jnp.sum(image_bxD * text_bxD, axis=1) + bias
        sums = (jnp.sum(rows["loss"]), jnp.sum(own), jnp.sum(rows["logit"]))
        return tuple(jax.lax.psum(s, axes) if axes else s for s in sums)

    scalars = (jnp.asarray(logit_scale, jnp.float32), jnp.asarray(logit_bias, jnp.float32))
    inputs = (image_BxD.astype(jnp.float32), text_BxD.astype(jnp.float32))
    loss, own, every = on_shards(shard, mesh, batch, arrays=2)(*inputs, *scalars)
    metrics = {"positive_logit": own / batch}
    if batch > 1:
        metrics["negative_logit"] = (every - own) / (batch * (batch - 1))
    return loss / batch, metrics


def sigmoid(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`sigmoid_contrastive` as an entry of a config's losses."""
    del batch
    if "logit_bias" not in outputs:
        raise UserError(
            "The sigmoid loss needs a logit bias; set config.model.init_bias (SigLIP: -10)."
        )
    return sigmoid_contrastive(
        outputs["image_embedding"],
        outputs["text_embedding"],
        outputs["logit_scale"],
        outputs["logit_bias"],
        mesh=mesh,
        layout=layout,
        block_size=block_size,
    )
