"""Grounding loss: the box that a region's text points at, CLOC (Chen et al. 2025)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.errors import UserError
from clipjax.losses.regions.annotated import annotated


def grounding(
    pred_BxMx4: jax.Array, boxes_BxMx4: jax.Array, mask_BxM: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_grounding = 1/(4 R) sum ||box - prediction||^2 over the R regions of the global batch that exist.

    CLOC (Chen et al. 2025, arXiv 2410.02746): plain mean squared error, no matching and no overlap term. Without any
    region, value and gradients are 0. Costs nothing to speak of; two scalars are summed over devices.

    Args:
      pred_BxMx4: float32 predicted corners x1,y1,x2,y2; neither clipped nor ordered.
      boxes_BxMx4: float32 true corners, x1 <= x2 and y1 <= y2, in [0,1] of the model's input frame.
      mask_BxM: True where a region exists; what the others hold does not matter.

    Returns:
      float32 scalar and the metric `iou`: mean intersection over union of the true box and the prediction, whose
      corners are first clipped to [0,1] and put in order.

    Raises:
      UserError: shapes that do not belong together.
    """
    pred_BxMx4, boxes_BxMx4 = (jnp.asarray(x, jnp.float32) for x in (pred_BxMx4, boxes_BxMx4))
    mask_BxM = jnp.asarray(mask_BxM) != 0
    shapes = [list(x.shape) for x in (pred_BxMx4, boxes_BxMx4, mask_BxM)]
    if shapes[0] != shapes[1] or shapes[0] != [*shapes[2], 4] or mask_BxM.ndim != 2:
        raise UserError(
            "The grounding loss takes boxes [B, M, 4] twice and a mask [B, M], "
            f"not {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    regions = jnp.maximum(jnp.sum(mask_BxM, dtype=jnp.float32), 1.0)
    error_BxMx4 = jnp.where(mask_BxM[..., None], pred_BxMx4 - boxes_BxMx4, 0.0)
    iou_BxM = _iou(jax.lax.stop_gradient(pred_BxMx4), boxes_BxMx4)
    iou = jnp.sum(iou_BxM, where=mask_BxM) / regions
    return jnp.sum(jnp.square(error_BxMx4)) / (4.0 * regions), {"iou": iou}


def _iou(pred_BxMx4: jax.Array, boxes_BxMx4: jax.Array) -> jax.Array:
    """Intersection over union, 0 where both boxes are empty."""
    a_BxMx2, b_BxMx2 = jnp.split(jnp.clip(pred_BxMx4, 0.0, 1.0), 2, axis=-1)
    low_BxMx2, high_BxMx2 = jnp.minimum(a_BxMx2, b_BxMx2), jnp.maximum(a_BxMx2, b_BxMx2)
    from_BxMx2, to_BxMx2 = jnp.split(boxes_BxMx4, 2, axis=-1)

    def area(low: jax.Array, high: jax.Array) -> jax.Array:
        return jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)

    both = area(jnp.maximum(low_BxMx2, from_BxMx2), jnp.minimum(high_BxMx2, to_BxMx2))
    either = area(low_BxMx2, high_BxMx2) + area(from_BxMx2, to_BxMx2) - both
    return jnp.where(either > 0.0, both / jnp.where(either > 0.0, either, 1.0), 0.0)


def region_grounding(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`grounding` as an entry of a config's losses, times the share of images that have a region (`annotated`)."""
    del mesh  # sums over global arrays
    share = annotated(outputs, batch, "grounding", ("grounded_boxes",))
    loss, metrics = grounding(outputs["grounded_boxes"], batch["boxes"], batch["region_mask"])
    return share * loss, metrics | {"annotated": share}
