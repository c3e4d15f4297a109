"""Contrastive loss of regions and their texts, with near-duplicate texts left out: CLOC (Chen et al. 2025)."""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.errors import UserError
from clipjax.losses.regions.annotated import annotated
from clipjax.losses.softmax import softmax_contrastive
from clipjax.losses.targets import Diagonal, Info, diagonal


@flax.struct.dataclass
class _Distinct(Diagonal):
    """Row i belongs to column i; other columns whose text is too much like the row's own are left out.

    Attributes:
      text_RxD: the rows' own texts, L2-normalised.
      threshold: the largest cosine that still counts as another text.
    """

    text_RxD: jax.Array
    threshold: float

    def rows(self) -> dict[str, jax.Array]:
        threshold_R = jnp.full(len(self.text_RxD), self.threshold, jnp.float32)
        return {**super().rows(), "text": self.text_RxD, "threshold": threshold_R}

    @staticmethod
    def left_out(rows: Info, columns: Info) -> jax.Array:
        cosine_rxc = jnp.matmul(
            rows["text"], columns["embedding"].T, precision=jax.lax.Precision.HIGHEST
        )
        other_rxc = rows["id"][:, None] != columns["id"]
        return other_rxc & (cosine_rxc > rows["threshold"][:, None])


def region_contrastive(
    region_BxMxD: jax.Array,
    text_BxMxD: jax.Array,
    mask_BxM: jax.Array,
    logit_scale: jax.Array | float,
    *,
    conflict_threshold: float = 0.9,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
    precision: str = "highest",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_CLOC: mean of the region-to-text and the text-to-region cross-entropy over all regions of the global batch.

    CLOC (Chen et al. 2025, arXiv 2410.02746): every region is classified among the texts of all regions of all images,
    those of its own image included, and every text among all regions. Region texts repeat, so a pair whose two texts
    have a cosine above `conflict_threshold` is left out of the denominators of both directions; a region's own text
    never is. No gradient flows through that decision. Sums are divided by the number of regions that exist; without
    any, value and gradients are 0.

    The loss is `softmax_contrastive` over R = B M rows (empty places are computed too), and value and gradients do not
    depend on the mesh, the layout or the block size. Cost on each of N devices, with r = R / N rows: 8 r R D FLOPs with
    gradients, and 4 r R D more for the filter, whose cosines are formed tile by tile in both passes. Memory beside
    inputs and gradients: a few tiles of `block_size` x `block_size` words, 2 R D words ("gather") or 4 r D ("ring"),
    and up to 4 r D of copies with empty places zeroed. Elements communicated: 2 R D ("gather") or 3 R D ("ring"); the
    filter communicates none.

    Args:
      region_BxMxD: L2-normalised region embeddings; images may be split over the `data` and `fsdp` axes of `mesh`.
      text_BxMxD: L2-normalised embeddings of their texts, likewise.
      mask_BxM: True where a region exists. What the others hold does not matter.
      logit_scale: the scale itself, not its logarithm; positive.
      conflict_threshold: a cosine; above 1 nothing is left out, and no cosines of texts are formed.
      mesh: the mesh over which the batch is split; None for one device.
      layout: "gather" or "ring", see clipjax/losses/tiles.py.
      block_size: most rows and columns of one tile, default 1024.
      precision: of the products, "highest" (float32), "high" or "default"; cosines of texts are always float32.

    Returns:
      float32 scalar and metrics: `region_to_text_accuracy` and `text_to_region_accuracy` among the pairs that count,
      and, with a filter, `conflicts`: how many texts are left out of a region's denominator, on average.

    Raises:
      UserError: shapes that differ or are empty, a threshold that is not a number, a batch that does not divide over
        the mesh, an unknown layout.
    """
    if isinstance(conflict_threshold, bool) or not isinstance(conflict_threshold, int | float):
        raise UserError(f"conflict_threshold must be a number, not {conflict_threshold!r}.")
    region_BxMxD, text_BxMxD = (jnp.asarray(x, jnp.float32) for x in (region_BxMxD, text_BxMxD))
    mask_BxM = jnp.asarray(mask_BxM) != 0
    shapes = [list(x.shape) for x in (region_BxMxD, text_BxMxD, mask_BxM)]
    if (
        region_BxMxD.ndim != 3
        or shapes[0] != shapes[1]
        or shapes[0][:2] != shapes[2]
        or not mask_BxM.size
    ):
        raise UserError(
            "The region loss takes regions and texts [B, M, D] and a mask [B, M] that are not empty, "
            f"not {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    mask_R = mask_BxM.reshape(-1)
    region_RxD, text_RxD = (
        jnp.where(mask_R[:, None], x.reshape(-1, x.shape[-1]), 0.0)
        for x in (region_BxMxD, text_BxMxD)
    )
    targets = diagonal(len(text_RxD))
    if conflict_threshold <= 1:
        own_RxD = jax.lax.stop_gradient(text_RxD)
        targets = _Distinct(targets.image_id_R, targets.text_id_C, own_RxD, conflict_threshold)
    loss, found = softmax_contrastive(
        region_RxD,
        text_RxD,
        logit_scale,
        mesh=mesh,
        layout=layout,
        block_size=block_size,
        targets=targets,
        image_mask=mask_R,
        text_mask=mask_R,
        precision=precision,
    )
    names = {
        "image_to_text_accuracy": "region_to_text_accuracy",
        "text_to_image_accuracy": "text_to_region_accuracy",
        "left_out": "conflicts",
    }
    return loss, {names[k]: x for k, x in found.items()}


def region_softmax(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
    conflict_threshold: float = 0.9,
    precision: str = "highest",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`region_contrastive` as an entry of a config's losses, times the share of images that have a region.

    That share is CLOC's lambda without its factor, which is the entry's weight; it is the metric `annotated`.
    """
    needs = ("region_embedding", "region_text_embedding", "logit_scale")
    share = annotated(outputs, batch, "region_softmax", needs)
    loss, metrics = region_contrastive(
        outputs["region_embedding"],
        outputs["region_text_embedding"],
        batch["region_mask"],
        outputs["logit_scale"],
        conflict_threshold=conflict_threshold,
        mesh=mesh,
        layout=layout,
        block_size=block_size,
        precision=precision,
    )
    return share * loss, metrics | {"annotated": share}
