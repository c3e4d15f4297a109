"""Softmax contrastive loss (InfoNCE): Radford et al. 2021, figure 3."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jax.sharding import Mesh

from clipjax.losses import inputs
from clipjax.losses.pairs import LOWEST, Pairs, Statistics, make_tiling, pair_statistics
from clipjax.losses.targets import SameId, Targets, Teacher, diagonal


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """Log-sums of the logits along rows and columns, and the targets' mean similarity.

    Attributes:
      targets: of a tile, see `Targets.tile`; None if there are none.
      left_out: pairs of a tile that do not count, see `Targets.left_out`; None if all do.
      apart: leaves positives out of the log-sums. With one positive a row its loss is then softplus(log-sum of the
        rivals - own logit), exact even where the loss is far smaller than the logits.
      smooth: also sum over all pairs, for label smoothing.
      hits: also find the best positive and the best rival.
    """

    targets: Callable[[Any, Any], tuple[jax.Array, jax.Array]] | None
    left_out: Callable[[Any, Any], jax.Array] | None = None
    apart: bool = False
    smooth: bool = False
    hits: bool = False

    def empty(self, rows: int, columns: int) -> tuple[Statistics, Statistics]:
        names = ["sum_exp", "offset"]
        names += ["positive", "weight"] if self.targets else []
        names += ["all", "count"] if self.smooth else []
        names += ["dropped"] if self.left_out else []
        maxima = ["max", *(["best_positive", "best_negative"] if self.hits else [])]
        start = dict.fromkeys(names, 0.0) | dict.fromkeys(maxima, LOWEST)
        of_rows, of_columns = (
            {n: jnp.full(count, x) for n, x in start.items()} for count in (rows, columns)
        )
        return of_rows, of_columns

    def measure(self, pairs: Pairs) -> tuple[Statistics, Statistics]:
        of_rows, of_columns = self._targets(pairs)
        counted = pairs.without(self.left_out)
        rows, columns = self._measure(counted, of_rows, 1), self._measure(counted, of_columns, 0)
        if self.left_out:
            dropped_rxc = pairs.valid_rxc & ~counted.valid_rxc
            rows["dropped"] = jnp.sum(dropped_rxc, axis=1, dtype=jnp.float32)
            columns["dropped"] = jnp.sum(dropped_rxc, axis=0, dtype=jnp.float32)
        return rows, columns

    def _measure(self, pairs: Pairs, target_rxc: jax.Array | None, axis: int) -> Statistics:
        similarity_rxc, valid_rxc = pairs.similarity_rxc, pairs.valid_rxc
        summed_rxc = self._summed(valid_rxc, target_rxc)
        top = jnp.max(similarity_rxc, axis, initial=LOWEST, where=summed_rxc)
        # The difference before the scale: logits near 100 would round to 8e-6.
        below_rxc = similarity_rxc - jnp.expand_dims(top, axis)
        power_rxc = jnp.exp(pairs.scalars["scale"] * below_rxc)
        found = {
            "max": top,
            "sum_exp": jnp.sum(power_rxc, axis, where=summed_rxc),
            "offset": jnp.sum(power_rxc * below_rxc, axis, where=summed_rxc),
        }
        if target_rxc is not None:
            found["positive"] = jnp.sum(target_rxc * similarity_rxc, axis, where=valid_rxc)
            found["weight"] = jnp.sum(target_rxc, axis, where=valid_rxc)
        if self.smooth:
            found["all"] = jnp.sum(similarity_rxc, axis, where=valid_rxc)
            found["count"] = jnp.sum(valid_rxc, axis, dtype=jnp.float32)
        if self.hits:
            positive_rxc = target_rxc > 0
            for name, where_rxc in (
                ("best_positive", positive_rxc),
                ("best_negative", ~positive_rxc),
            ):
                found[name] = jnp.max(
                    similarity_rxc, axis, initial=LOWEST, where=valid_rxc & where_rxc
                )
        return found

    def similarity_gradient(self, pairs: Pairs) -> jax.Array:
        pairs = pairs.without(self.left_out)
        sides = zip((pairs.rows, pairs.columns), self._targets(pairs), (1, 0), strict=True)
        return sum(self._gradient(pairs, *side) for side in sides)

    def _gradient(
        self, pairs: Pairs, side: Mapping[str, Any], target_rxc: jax.Array | None, axis: int
    ) -> jax.Array:
        scale = pairs.scalars["scale"]
        final, gradient = (
            {k: jnp.expand_dims(v, axis) for k, v in side[name].items()}
            for name in ("statistics", "gradient")
        )
        share_rxc = scale * (pairs.similarity_rxc - final["max"]) - final["log_sum_exp"]
        if self.left_out:
            # A share is at most 1. A pair at the edge of being left out may be rounded to the other side in the second
            # pass and then lie far above the top of those that were counted.
            share_rxc = jnp.minimum(share_rxc, 0.0)
        share_rxc = jnp.exp(share_rxc)
        push_rxc = scale * gradient["log_sum_exp"] * share_rxc
        gradient_rxc = jnp.where(self._summed(pairs.valid_rxc, target_rxc), push_rxc, 0.0)
        if target_rxc is not None:
            gradient_rxc += jnp.where(pairs.valid_rxc, gradient["positive"] * target_rxc, 0.0)
        if self.smooth:
            gradient_rxc += jnp.where(pairs.valid_rxc, gradient["all"], 0.0)
        return gradient_rxc

    def scalar_gradients(
        self, statistics: Statistics, gradient: Statistics
    ) -> dict[str, jax.Array]:
        # d log_sum_exp / d scale is the mean of s - max: the mean of s alone would cancel against the own similarity.
        return {"scale": jnp.sum(gradient["log_sum_exp"] * statistics["offset"])}

    def _targets(self, pairs: Pairs) -> tuple[jax.Array | None, jax.Array | None]:
        return self.targets(pairs.rows, pairs.columns) if self.targets else (None, None)

    def _summed(self, valid_rxc: jax.Array, target_rxc: jax.Array | None) -> jax.Array:
        return valid_rxc & (target_rxc == 0) if self.apart else valid_rxc


def softmax_contrastive(
    image_BxD: jax.Array,
    text_BxD: jax.Array,
    logit_scale: jax.Array | float,
    *,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
    targets: Targets | None = None,
    label_smoothing: float = 0.0,
    image_mask: jax.Array | None = None,
    text_mask: jax.Array | None = None,
    image_weight: jax.Array | None = None,
    text_weight: jax.Array | None = None,
    precision: str = "highest",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean of the image-to-text and the text-to-image cross-entropy over the whole (global) batch.

    With S = logit_scale * image @ text.T and targets q that sum to 1 along each row (p along each column), the loss is
    mean_i [lse_j S_ij - sum_j q_ij S_ij] / 2 + mean_j [lse_i S_ij - sum_i p_ij S_ij] / 2. Without `targets` q and p are
    one-hot: row i belongs to column i. Value and gradients do not depend on the mesh, the layout or the block size.

    Cost on each of N devices, with b = B / N rows: 2 b B D FLOPs, and 6 b B D for the gradients. Memory beside inputs
    and gradients: a few tiles of `block_size` x `block_size` words, and 2 B D words ("gather": all texts and their
    gradient) or 4 b D ("ring": two blocks on the move and their gradients). Elements communicated: 2 B D ("gather") or
    3 B D.

    Args:
      image_BxD: L2-normalised; rows may be split over the `data` and `fsdp` axes of `mesh`.
      text_BxD: likewise. With `targets` there may be another number of texts, [C, D].
      logit_scale: the scale itself, not its logarithm; positive.
      mesh: the mesh over which the batch is split; None for one device.
      layout: "gather" or "ring", see clipjax/losses/tiles.py.
      block_size: most rows and columns of one tile, default 1024; need not divide B.
      targets: which pairs are positive, and how much; see clipjax/losses/targets.py. Constants. A row (or column)
        without any positive adds nothing.
      label_smoothing: this share of each row's target is spread evenly over all its pairs.
      image_mask, text_mask: bool [B], [C]; where False the row (column) is left out, as a negative of others too.
      image_weight, text_weight: float [B], [C], constants: factors of the cross-entropy of each row (image to text)
        and each column (text to image). They do not change what the sums are divided by: the number of rows (columns)
        that are not masked and have a positive.
      precision: of the products, "highest" (float32), "high" or "default" (what the hardware does fastest).

    Returns:
      float32 scalar and metrics: `image_to_text_accuracy` and `text_to_image_accuracy` within the batch, how often the
      best positive beats all negatives (not for soft targets). With targets that leave pairs out also `left_out`, the
      mean number of columns left out of a row that counts.

    Raises:
      UserError: shapes that differ, a batch that does not divide over the mesh, an unknown layout.
    """
    image_BxD, text_BxD = (jnp.asarray(x, jnp.float32) for x in (image_BxD, text_BxD))
    inputs.check(image_BxD, text_BxD, targets, label_smoothing)
    tiling = make_tiling(mesh, layout, block_size, precision, len(image_BxD), len(text_BxD))
    if targets is None:
        targets = diagonal(len(image_BxD))
    alone = targets.single and not label_smoothing
    kernel = _Softmax(
        targets.tile,
        targets.left_out,
        apart=alone,
        smooth=label_smoothing > 0,
        hits=targets.hard and not alone,
    )
    scale = jnp.asarray(logit_scale, jnp.float32)
    sides = pair_statistics(
        kernel,
        tiling,
        image_BxD,
        text_BxD,
        {"scale": scale},
        {**targets.rows(), "valid": inputs.mask(image_mask, image_BxD, "image_mask")},
        {**targets.columns(), "valid": inputs.mask(text_mask, text_BxD, "text_mask")},
    )
    weights = (
        inputs.weight(image_weight, image_BxD, "image_weight"),
        inputs.weight(text_weight, text_BxD, "text_weight"),
    )
    means, metrics = [], {}
    for found, weight, name in zip(
        sides, weights, ("image_to_text_accuracy", "text_to_image_accuracy"), strict=True
    ):
        counts = found["weight"] > 0
        own = found["positive"] / jnp.where(counts, found["weight"], 1.0)
        if label_smoothing:
            own = (1.0 - label_smoothing) * own + label_smoothing * found["all"] / jnp.maximum(
                found["count"], 1.0
            )
        above = scale * (jax.lax.stop_gradient(found["max"]) - own) + found["log_sum_exp"]
        loss = jnp.where(counts, jax.nn.softplus(above) if alone else above, 0.0) * weight
        number = jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0)
        means.append(jnp.sum(loss) / number)
        if targets.hard:
            best, rival = (
                (found["positive"], found["max"])
                if alone
                else (found["best_positive"], found["best_negative"])
            )
            hit = (best > rival) | jnp.isneginf(found["log_sum_exp"])  # or there is no rival
            metrics[name] = jnp.sum(hit & counts, dtype=jnp.float32) / number
    if targets.left_out:
        counts = sides[0]["weight"] > 0
        dropped = jnp.sum(sides[0]["dropped"], where=counts)
        metrics["left_out"] = dropped / jnp.maximum(jnp.sum(counts), 1)
    return 0.5 * (means[0] + means[1]), metrics


def teacher_targets(
    image_RxK: jax.Array,
    text_CxK: jax.Array,
    logit_scale: jax.Array | float,
    *,
    own_share: jax.Array | float = 0.0,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
) -> Teacher:
    """Soft targets from a teacher's embeddings, for `softmax_contrastive(..., targets=...)` with R = C.

    Costs 2 b B K FLOPs here and 4 b B K in the loss (the teacher's logits are formed again with each tile), and no
    B x B words. No gradient flows through it.

    Args:
      image_RxK: the teacher's image embeddings, of any width K.
      text_CxK: its text embeddings.
      logit_scale: its scale; positive.
      own_share: share of the one-hot target, a number or one for each row.
      mesh: as for the loss.
      layout: as for the loss.
      block_size: as for the loss.
    """
    inputs.check(image_RxK, text_CxK, None, 0.0)
    image_RxK, text_CxK = (
        jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (image_RxK, text_CxK)
    )
    tiling = make_tiling(mesh, layout, block_size, "highest", len(image_RxK), len(text_CxK))
    scale = jnp.asarray(logit_scale, jnp.float32)
    sides = pair_statistics(
        _Softmax(None),
        tiling,
        image_RxK,
        text_CxK,
        {"scale": scale},
        {"valid": inputs.mask(None, image_RxK, "")},
        {"valid": inputs.mask(None, text_CxK, "")},
    )
    row_lse, column_lse = (scale * found["max"] + found["log_sum_exp"] for found in sides)
    share_R = jnp.broadcast_to(jnp.asarray(own_share, jnp.float32), row_lse.shape)
    own_R = jnp.sum(image_RxK * text_CxK, axis=-1)
    entropies = (_mixed_entropy(found, scale, own_R, share_R) for found in sides)
    constants = (scale * image_RxK, text_CxK, row_lse, column_lse, share_R, *entropies)
    return Teacher(*jax.lax.stop_gradient(constants))


def _mixed_entropy(
    found: Statistics, scale: jax.Array, own_R: jax.Array, share_R: jax.Array
) -> jax.Array:
    """Entropy of share * one-hot + (1 - share) * p, from the statistics of p and each row's own similarity."""
    left_R = 1.0 - share_R
    log_own_R = scale * (own_R - found["max"]) - found["log_sum_exp"]
    own_R = jnp.exp(log_own_R)
    # The sum of p log p over all pairs, then over the others.
    all_R = scale * found["offset"] - found["log_sum_exp"]
    others_R = left_R * (all_R - own_R * log_own_R) + (1.0 - own_R) * xlogy(left_R, left_R)
    mixed_R = share_R + left_R * own_R
    return -xlogy(mixed_R, mixed_R) - others_R


def softmax(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
    image: str = "image_embedding",
    text: str = "text_embedding",
    scale: str | float = "logit_scale",
    layout: str = "gather",
    block_size: int | None = None,
    label_smoothing: float = 0.0,
    precision: str = "highest",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`softmax_contrastive` as an entry of a config's losses. K captions an image are K positives of it.

    `image` and `text` are the outputs that are compared, two views of an image for example; `scale` an output or a
    number.
    """
    del batch
    text, targets = outputs[text], None
    if text.ndim == 3:
        text, *numbers = inputs.captions(text)
        targets = SameId(*numbers)
    return softmax_contrastive(
        outputs[image],
        text,
        inputs.scalar(outputs, scale),
        mesh=mesh,
        layout=layout,
        block_size=block_size,
        targets=targets,
        label_smoothing=label_smoothing,
        precision=precision,
    )
