"""ALIP's loss: CLIP's on two texts of an image, where noisy pairs count less (Yang et al. 2023, section 3)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.errors import UserError
from clipjax.losses import softmax_contrastive

Arrays = Mapping[str, jax.Array]

MEANS = ("mean_tc", "mean_xt", "mean_xc")  # H of the paper: outputs, and the parameters' paths


def similarities(image_BxD: jax.Array, raw_BxD: jax.Array, synthetic_BxD: jax.Array) -> Arrays:
    """S of the paper, float32 [B] each, under the names of their running means; constants."""
    x, t, c = (jax.lax.stop_gradient(e) for e in (image_BxD, raw_BxD, synthetic_BxD))
    pairs = zip(MEANS, ((t, c), (x, t), (x, c)), strict=True)
    return {name: jnp.sum(a * b, axis=-1) for name, (a, b) in pairs}


def pair_weights(
    similarity: Arrays, means: Arrays, sample_gate: float, raw_gate: float, synthetic_gate: float
) -> tuple[jax.Array, jax.Array]:
    """Ws Wt and Ws Wc, float32 [B]: weights of the pairs (image, raw text) and (image, synthetic caption).

    Where the two texts agree less than they do on average, a sample counts exp(sample_gate (S - H)) < 1, and each of
    its pairs exp(gate (S - H)), which may exceed 1. Other samples count 1. A gate of 0 is no gate.
    """
    above_tc, above_xt, above_xc = (similarity[name] - means[name] for name in MEANS)

    def weight(gate: float, above: jax.Array) -> jax.Array:
        return jnp.where(above_tc < 0, jnp.exp(sample_gate * above_tc + gate * above), 1.0)

    return weight(raw_gate, above_xt), weight(synthetic_gate, above_xc)


def gated_contrastive(
    outputs: Arrays,
    batch: Arrays,
    *,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
    sample_gate: float = 2.0,
    raw_gate: float = 2.0,
    synthetic_gate: float = 2.0,
    decay: float = 0.99,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Sum of two `softmax_contrastive`, of raw texts and of synthetic captions, with `pair_weights` on the samples.

    Costs what these two cost, and three means over the global batch.

    Args:
      outputs: of a `GatedDualEncoder`; `text_embedding` is [B,2,D], raw and synthetic.
      batch: not read.
      mesh, layout, block_size: as for `softmax_contrastive`.
      sample_gate, raw_gate, synthetic_gate: gamma_s of the paper, and gamma_p of each of the two pairs.
      decay: of the running means, which move first: the weights are those of the new ones.

    Returns:
      float32 scalar, metrics (of either part loss, accuracies, mean weight), and the new running means as updates.

    Raises:
      UserError: not two texts an image.
    """
    del batch
    image_BxD, text_Bx2xD = outputs["image_embedding"], outputs["text_embedding"]
    if text_Bx2xD.ndim != 3 or text_Bx2xD.shape[1] != 2:
        raise UserError(
            "gated_contrastive takes two texts an image, raw and synthetic, but text_embedding is "
            f"{list(text_Bx2xD.shape)}; use the caption policy experiments.alip.features:Fields with two fields."
        )
    texts = {"raw": text_Bx2xD[:, 0], "synthetic": text_Bx2xD[:, 1]}
    found = similarities(image_BxD, *texts.values())
    means = {name: decay * outputs[name] + (1.0 - decay) * jnp.mean(found[name]) for name in MEANS}
    means = jax.lax.stop_gradient(means)
    weights = pair_weights(found, means, sample_gate, raw_gate, synthetic_gate)
    total, metrics = jnp.float32(0.0), dict(means)
    for (name, text_BxD), weight_B in zip(texts.items(), weights, strict=True):
        value, more = softmax_contrastive(
            image_BxD,
            text_BxD,
            outputs["logit_scale"],
            mesh=mesh,
            layout=layout,
            block_size=block_size,
            image_weight=weight_B,
            text_weight=weight_B,
        )
        more |= {"loss": value, "weight": jnp.mean(weight_B)}
        total, metrics = total + value, metrics | {f"{name}/{k}": x for k, x in more.items()}
    return total, metrics, means
