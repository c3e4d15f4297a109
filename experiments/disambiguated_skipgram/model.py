"""Skip-gram with several senses a word, and a network that tells from the context which one is meant."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.models.layers import parameter
from clipjax.models.lookup import lookup


def context_mean(table_VxD: jax.Array, context_BxC: jax.Array) -> jax.Array:
    """Mean of a table's rows, [B, D]; -1 is no word, and UNKNOWN (0) counts as any other."""
    is_word = context_BxC >= 0
    rows = lookup(table_VxD, jnp.maximum(context_BxC, 0)) * is_word[..., None]
    return rows.sum(-2) / jnp.maximum(is_word.sum(-1, keepdims=True), 1)


class SkipGram(nn.Module):
    """Tables of senses, of words as targets, and of what tells senses apart.

    Row w K + k of a table of senses is sense k of word w. Parameters: `sense` [V K, D], `output` [V, D] with
    `output_bias` [V], `disambiguation` [V K, D] with `disambiguation_bias` [V K], or, if shared, [K, D] and [K].

    Attributes:
      vocabulary: words V.
      senses: of each word, K; 1 is plain skip-gram.
      embed_dim: D.
      shared: all words have the same disambiguation (the first stage).
      relaxed: draw y, a relaxed one-hot vector for each target, while training (the second stage); else y is p itself.
    """

    vocabulary: int
    senses: int = 5
    embed_dim: int = 300
    shared: bool = False
    relaxed: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    needs = ("centre", "context", "targets")

    @nn.compact
    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """What the losses make y and r of.

        Args:
          batch: `centre` int32 [B]; `context` int32 [B, C], -1 where there is none; `targets` int32 [B, T] when
            training, and then `sample_seed` [B]. With P positions a sample, [B, P], [B, P, C] and [B, P, T].
          train: whether to draw.

        Returns:
          `context_mean` u [B, D], without a gradient; `sense_logits` z [B, K]; and where there are targets
          `sense_scores` [B, T, K], z with Gumbel noise if it is drawn (y is their softmax at a temperature);
          `sense_vectors` [B, K, D]; the tables `output_vectors` [V, D] and `output_bias` [V]. All float32, and those
          with B with P behind it, if there are positions.
        """
        V, K, D = self.vocabulary, self.senses, self.embed_dim
        zeros, width = nn.initializers.zeros, 0.5 / (D * K)

        def table(name: str, rows: int, *columns: int, init: Any = zeros) -> jax.Array:
            axes = ("vocab" if rows >= V else None, *["embed" for _ in columns])
            return parameter(self, name, init, (rows, *columns), axes, self.param_dtype)

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -width, width)

        sense = table("sense", V * K, D, init=uniform)
        output, output_bias = table("output", V, D), table("output_bias", V)
        rows = K if self.shared else V * K
        kernel = table("disambiguation", rows, D)
        bias = table("disambiguation_bias", rows)

        ids_BxK = batch["centre"][..., None] * K + jnp.arange(K)
        u_BxD = jax.lax.stop_gradient(context_mean(output, batch["context"]).astype(jnp.float32))
        if self.shared:
            z_BxK = u_BxD @ kernel.T + bias
        else:
            z_BxK = jnp.einsum("...d,...kd->...k", u_BxD, lookup(kernel, ids_BxK)) + bias[ids_BxK]
        outputs = {"context_mean": u_BxD, "sense_logits": z_BxK}
        if "targets" not in batch:
            return outputs
        scores = jnp.broadcast_to(z_BxK[..., None, :], (*batch["targets"].shape, K))
        if self.relaxed and train:
            draw = lambda seed: jax.random.gumbel(jax.random.key(seed), scores.shape[1:])  # noqa: E731
            scores = scores + jax.vmap(draw)(batch["sample_seed"])
        return outputs | {
            "sense_scores": scores,
            "sense_vectors": lookup(sense, ids_BxK),
            "output_vectors": output,
            "output_bias": output_bias,
        }
