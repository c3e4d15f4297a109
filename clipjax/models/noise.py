"""Noise while training, drawn from `sample_seed` alone: the same on every mesh, in every chunk, at every repetition."""

import zlib

import jax
import jax.numpy as jnp
from flax import linen as nn

_DROPOUT = 0  # `drop_path` has the branches 1 and 2


def own_seed(module: nn.Module, sample_seed_B: jax.Array) -> jax.Array:
    """A module's own seeds, uint32 [B]: by its path, so that two towers of a model do not drop the same."""
    place = zlib.crc32("/".join(module.path).encode())
    return sample_seed_B.astype(jnp.uint32) ^ jnp.uint32(place)


def dropout(x_BxNxW: jax.Array, rate: float, seed_B: jax.Array, layer: jax.Array) -> jax.Array:
    """Elements set to zero with probability `rate`, the others divided by 1 - rate (Srivastava et al. 2014)."""
    kept = _kept(seed_B, layer, _DROPOUT, rate, x_BxNxW.shape[1:])
    return jnp.where(kept, x_BxNxW / (1.0 - rate), 0.0).astype(x_BxNxW.dtype)


def drop_path(
    y_BxNxW: jax.Array, rate: jax.Array, seed_B: jax.Array, layer: jax.Array, branch: int
) -> jax.Array:
    """A residual branch left out for samples with probability `rate`, for the others divided by 1 - rate."""
    kept = _kept(seed_B, layer, branch, rate, (1, 1))
    return jnp.where(kept, y_BxNxW / (1.0 - rate), 0.0).astype(y_BxNxW.dtype)


def _kept(
    seed_B: jax.Array, layer: jax.Array, stream: int, rate: float, shape: tuple[int, ...]
) -> jax.Array:
    """Bool [B, *shape], False with probability `rate`."""

    def draw(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), layer), stream)
        return jax.random.bernoulli(key, 1.0 - rate, shape)

    return jax.vmap(draw)(seed_B)
