"""Sigmoid contrastive loss: Zhai et al. 2023 (SigLIP), equation 1 and algorithm 1."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.errors import UserError
from clipjax.losses import inputs
from clipjax.losses.pairs import Pairs, Statistics, make_tiling, pair_statistics
from clipjax.losses.targets import SameId, Targets, diagonal


@dataclasses.dataclass(frozen=True)
class _Sigmoid:
    """Sums of the weighted binary cross-entropies along rows; columns have no statistics.

    Attributes:
      targets: of a tile, see `Targets.tile`; the row direction's are used.
      left_out: pairs of a tile that do not count, see `Targets.left_out`; None if all do.
      smoothing: label smoothing.
    """

    targets: Callable[[Any, Any], tuple[jax.Array, jax.Array]]
    left_out: Callable[[Any, Any], jax.Array] | None
    smoothing: float

    def empty(self, rows: int, columns: int) -> tuple[Statistics, Statistics]:
        names = ("loss", "scale_gradient", "bias_gradient", "positive", "all", "weight", "count")
        return {name: jnp.zeros(rows) for name in names}, {}

    def measure(self, pairs: Pairs) -> tuple[Statistics, Statistics]:
        pairs = pairs.without(self.left_out)
        positive_rxc, _ = self.targets(pairs.rows, pairs.columns)
        target_rxc, logits_rxc = self._smoothed(positive_rxc), self._logits(pairs)
        # Each of the two terms by itself: softplus(x) - target * x would lose a small loss in large logits.
        unlike_rxc = (1.0 - target_rxc) * jax.nn.softplus(logits_rxc)
        loss_rxc = target_rxc * jax.nn.softplus(-logits_rxc) + unlike_rxc
        gradient_rxc = self._gradient(pairs)
        terms = {
            "loss": self._weight(pairs) * loss_rxc,
            "scale_gradient": gradient_rxc * pairs.similarity_rxc,
            "bias_gradient": gradient_rxc,
            "positive": positive_rxc * logits_rxc,
            "all": logits_rxc,
            "weight": positive_rxc,
            "count": jnp.ones_like(logits_rxc),
        }
        return {k: jnp.sum(v, axis=1, where=pairs.valid_rxc) for k, v in terms.items()}, {}

    def similarity_gradient(self, pairs: Pairs) -> jax.Array:
        pairs = pairs.without(self.left_out)
        factor_rx1 = pairs.scalars["scale"] * pairs.rows["gradient"]["loss"][:, None]
        return jnp.where(pairs.valid_rxc, factor_rx1 * self._gradient(pairs), 0.0)

    def scalar_gradients(
        self, statistics: Statistics, gradient: Statistics
    ) -> dict[str, jax.Array]:
        return {
            name: jnp.sum(gradient["loss"] * statistics[f"{name}_gradient"]) if gradient else 0.0
            for name in ("scale", "bias")
        }

    def _gradient(self, pairs: Pairs) -> jax.Array:
        """Derivative of the loss by the logit."""
        positive_rxc, _ = self.targets(pairs.rows, pairs.columns)
        target_rxc, logits_rxc = self._smoothed(positive_rxc), self._logits(pairs)
        unlike_rxc = (1.0 - target_rxc) * jax.nn.sigmoid(logits_rxc)
        return self._weight(pairs) * (unlike_rxc - target_rxc * jax.nn.sigmoid(-logits_rxc))

    def _weight(self, pairs: Pairs) -> jax.Array:
        return 0.5 * (pairs.rows["factor"][:, None] + pairs.columns["factor"])

    def _smoothed(self, target_rxc: jax.Array) -> jax.Array:
        return (1.0 - self.smoothing) * target_rxc + 0.5 * self.smoothing

    def _logits(self, pairs: Pairs) -> jax.Array:
        return pairs.scalars["scale"] * pairs.similarity_rxc + pairs.scalars["bias"]


def sigmoid_contrastive(
    image_BxD: jax.Array,
    text_BxD: jax.Array,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
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
    """Every pair of the global batch is a binary decision: -1/B sum_ij log sigmoid(z_ij (t x_i . y_j + b)).

    z is +1 for matching pairs and -1 for all others. Value and gradients do not depend on the mesh, the layout or the
    block size. Cost on each of N devices, with b = B / N rows: 2 b B D FLOPs, and 6 b B D for the gradients; memory and
    elements communicated as for `softmax_contrastive`.

    Args:
      image_BxD: L2-normalised; rows may be split over the `data` and `fsdp` axes of `mesh`.
      text_BxD: likewise. With `targets` there may be another number of texts, [C, D].
      logit_scale: the scale t itself, not its logarithm.
      logit_bias: the bias b.
      mesh: the mesh over which the batch is split; None for one device.
      layout: "gather" or "ring", see clipjax/losses/tiles.py.
      block_size: most rows and columns of one tile, default 1024; need not divide B.
      targets: the probability that a pair matches, see clipjax/losses/targets.py; default: row i and column i.
      label_smoothing: targets t become (1 - e) t + e / 2.
      image_mask, text_mask: bool [B], [C]; pairs of a row (column) with False are left out.
      image_weight, text_weight: float [B], [C], constants; a pair counts with the mean of the two.
      precision: of the products, "highest" (float32), "high" or "default" (what the hardware does fastest).

    Returns:
      float32 scalar, divided by the number of images that are not masked, and metrics: `positive_logit` (mean over
      matching pairs) and `negative_logit` (over the others; not a number where there are none).

    Raises:
      UserError: shapes that differ, a batch that does not divide over the mesh, an unknown layout.
    """
    image_BxD, text_BxD = (jnp.asarray(x, jnp.float32) for x in (image_BxD, text_BxD))
    inputs.check(image_BxD, text_BxD, targets, label_smoothing)
    tiling = make_tiling(mesh, layout, block_size, precision, len(image_BxD), len(text_BxD))
    if targets is None:
        targets = diagonal(len(image_BxD))
    image_valid = inputs.mask(image_mask, image_BxD, "image_mask")
    rows, _ = pair_statistics(
        _Sigmoid(targets.tile, targets.left_out, label_smoothing),
        tiling,
        image_BxD,
        text_BxD,
        {
            "scale": jnp.asarray(logit_scale, jnp.float32),
            "bias": jnp.asarray(logit_bias, jnp.float32),
        },
        {
            **targets.rows(),
            "valid": image_valid,
            "factor": inputs.weight(image_weight, image_BxD, "image_weight"),
        },
        {
            **targets.columns(),
            "valid": inputs.mask(text_mask, text_BxD, "text_mask"),
            "factor": inputs.weight(text_weight, text_BxD, "text_weight"),
        },
    )
    sums = {k: jax.lax.stop_gradient(jnp.sum(v)) for k, v in rows.items()}
    positive, every = sums["weight"], sums["count"]
    metrics = {
        "positive_logit": sums["positive"] / positive,
        "negative_logit": (sums["all"] - sums["positive"]) / (every - positive),
    }
    return jnp.sum(rows["loss"]) / jnp.maximum(jnp.sum(image_valid), 1), metrics


def sigmoid(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
    image: str = "image_embedding",
    text: str = "text_embedding",
    scale: str | float = "logit_scale",
    bias: str | float = "logit_bias",
    layout: str = "gather",
    block_size: int | None = None,
    label_smoothing: float = 0.0,
    precision: str = "highest",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`sigmoid_contrastive` as an entry of a config's losses. K captions an image are K matches of it.

    `image` and `text` are the outputs that are compared; `scale` and `bias` outputs or numbers.
    """
    del batch
    if bias == "logit_bias" and "logit_bias" not in outputs:
        raise UserError(
            "The sigmoid loss needs a logit bias; set config.model.init_bias (SigLIP: -10)."
        )
    text, targets = outputs[text], None
    if text.ndim == 3:
        text, *numbers = inputs.captions(text)
        targets = SameId(*numbers)
    return sigmoid_contrastive(
        outputs[image],
        text,
        inputs.scalar(outputs, scale),
        inputs.scalar(outputs, bias),
        mesh=mesh,
        layout=layout,
        block_size=block_size,
        targets=targets,
        label_smoothing=label_smoothing,
        precision=precision,
    )
