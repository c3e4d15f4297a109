"""A pair's features towards one random vector (RaFA), or each other. HyCD is the library's `similarity_distill`."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from clipjax.errors import UserError

RAW = ("image_embedding_raw", "text_embedding_raw")
STREAM = zlib.crc32(b"random_alignment")  # apart from what the towers draw from the same seeds


def random_targets(
    sample_seed_B: jax.Array, samples: jax.Array, width: int, modality: int = 0
) -> jax.Array:
    """Vectors of N(0, I), float32 [B, width], of each row's seed (itself of the run's) and the samples seen alone."""
    step = jax.lax.bitcast_convert_type(jnp.float32(samples), jnp.uint32)

    def draw(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed ^ jnp.uint32(STREAM)), step)
        return jax.random.normal(jax.random.fold_in(key, modality), (width,))

    return jax.vmap(draw)(sample_seed_B)


def random_alignment(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    samples: jax.Array,
    *,
    scaling: str = "code",
    std: float = 1.0,
    shared: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_RaFA: squared distance of raw image and text features [B, D] from a random vector of their pair.

    `scaling` "code" is the mean over B and D of each modality; "paper", half the sum over D, is D / 2 times as much.
    `std` is that of the vectors (0: the origin). Without `shared` each modality has a vector of its own.
    """
    loss, norms = 0.0, {}
    for modality, name in enumerate(RAW):
        z_BxD = outputs[name]
        of = 0 if shared else modality
        r_BxD = std * random_targets(batch["sample_seed"], samples, z_BxD.shape[1], of)
        loss += _factor(scaling, z_BxD) * jnp.mean(jnp.square(z_BxD - r_BxD))
        norms[f"{name}_norm"] = jnp.mean(jnp.linalg.norm(z_BxD, axis=-1))
    return loss, norms


def direct_alignment(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], *, scaling: str = "code"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An arm: squared distance of a pair's raw features from each other, scaled as in `random_alignment`."""
    del batch
    image_BxD, text_BxD = (outputs[name] for name in RAW)
    return _factor(scaling, image_BxD) * jnp.mean(jnp.square(image_BxD - text_BxD)), {}


def _factor(scaling: str, z_BxD: jax.Array) -> float:
    if scaling not in ("code", "paper"):
        raise UserError(f"scaling must be 'code' or 'paper', not {scaling!r}.")
    return 1.0 if scaling == "code" else z_BxD.shape[1] / 2
