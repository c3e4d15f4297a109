"""The two terms of Disambiguated Skip-gram's objective."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clipjax import piecewise
from experiments.disambiguated_skipgram.sampler import draw_candidates, log_expected

Arrays = Mapping[str, Any]


def sampled_cross_entropy(r_BxTxD, targets_BxT, table_VxD, bias_V, candidates_S) -> jax.Array:
    """-log softmax [B, T] of each target among itself and the candidates that are not it, unbiased for their rarity.

    B may be several axes, as everywhere here.
    """
    offset_V = bias_V - log_expected(len(bias_V), len(candidates_S))
    true_BxT = jnp.sum(r_BxTxD * table_VxD[targets_BxT], axis=-1) + offset_V[targets_BxT]
    others_BxTxS = r_BxTxD @ table_VxD[candidates_S].T + offset_V[candidates_S]
    others_BxTxS = jnp.where(targets_BxT[..., None] == candidates_S, -jnp.inf, others_BxTxS)
    every = jnp.concatenate([true_BxT[..., None], others_BxTxS], axis=-1)
    return jax.nn.logsumexp(every, axis=-1) - true_BxT


def sampled_softmax(
    outputs: Arrays,
    batch: Arrays,
    samples: jax.Array,
    *,
    candidates: int = 64,
    temperature: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sampled softmax of the targets for r = sum_k y_k R_k, y = softmax(scores / temperature); mean over all targets.

    Args:
      outputs: `sense_scores` [B, T, K], `sense_vectors` [B, K, D]; `output_vectors` [V, D], `output_bias` [V].
      batch: `targets` int32 [B, T], -1 where there is none. The candidates, the same for the whole batch, come from its
        first `sample_seed`, a hash of the run's seed and the samples seen.
      samples: seen so far.
      candidates: classes drawn; at least V of them is the full softmax.
      temperature: a number, or pairs ((samples, value), ...); None: 1.

    Cost: B T candidates D multiplications, B T candidates numbers.
    """
    tau = piecewise.at(piecewise.read(temperature or 1.0, "The temperature"), samples)
    y_BxTxK = jax.nn.softmax(outputs["sense_scores"] / tau)
    r_BxTxD = y_BxTxK @ outputs["sense_vectors"]
    is_there, table = batch["targets"] >= 0, outputs["output_vectors"]
    key = jax.random.fold_in(
        jax.random.key(batch["sample_seed"][0]), 1
    )  # not that sample's own noise
    drawn = draw_candidates(key, len(table), candidates)
    targets = jnp.maximum(batch["targets"], 0)
    each_BxT = sampled_cross_entropy(r_BxTxD, targets, table, outputs["output_bias"], drawn)
    mean = lambda x: jnp.where(is_there, x, 0).sum() / jnp.maximum(is_there.sum(), 1)  # noqa: E731
    return mean(each_BxT), {"largest_y": mean(y_BxTxK.max(-1))}


def entropy_bonus(
    outputs: Arrays, batch: Arrays, *, temperature: float = 1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Entropy of p = softmax(z / temperature), mean over all targets. Its weight is gamma, below 0 a bonus.

    Args:
      outputs: `sense_logits` z [B, K].
      batch: `targets` int32 [B, T], -1 where there is none.
      temperature: of p.
    """
    p_BxK = jax.nn.softmax(outputs["sense_logits"] / temperature)
    entropy_B = -(p_BxK * jnp.log(p_BxK + 1e-5)).sum(-1)
    count_B = (batch["targets"] >= 0).sum(-1)
    return (entropy_B * count_B).sum() / jnp.maximum(count_B.sum(), 1), {}
