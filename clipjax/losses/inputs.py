"""What both contrastive losses take: checked in one place, with one sentence for what does not fit."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from clipjax.errors import UserError
from clipjax.losses.targets import Targets


def check(
    image_BxD: jax.Array, text_CxD: jax.Array, targets: Targets | None, label_smoothing: float
) -> None:
    """Refuses shapes that do not belong together.

    Raises:
      UserError: not two matrices of one width, another number of texts than images without targets that say how they
        belong together, targets of other sizes, or a label smoothing outside [0, 1).
    """
    shapes = f"{list(image_BxD.shape)} and {list(text_CxD.shape)}"
    if image_BxD.ndim != 2 or text_CxD.ndim != 2 or image_BxD.shape[1] != text_CxD.shape[1]:
        raise UserError(f"A contrastive loss takes images and texts [B, D], not {shapes}.")
    if targets is not None:
        targets.check(len(image_BxD), len(text_CxD))
    elif len(image_BxD) != len(text_CxD):
        raise UserError(
            f"A contrastive loss without targets takes as many images as texts, not {shapes}."
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing}.")


def mask(values: jax.Array | None, of_BxD: jax.Array, name: str) -> jax.Array:
    """Bool [B]: `values`, or all True."""
    return jnp.ones(len(of_BxD), bool) if values is None else _one_each(values, of_BxD, name) != 0


def weight(values: jax.Array | None, of_BxD: jax.Array, name: str) -> jax.Array:
    """Float32 [B]: `values`, or all 1. A constant."""
    if values is None:
        return jnp.ones(len(of_BxD))
    return jax.lax.stop_gradient(_one_each(values, of_BxD, name).astype(jnp.float32))


def _one_each(values: jax.Array, of_BxD: jax.Array, name: str) -> jax.Array:
    values = jnp.asarray(values)
    if values.shape != of_BxD.shape[:1]:
        raise UserError(f"{name} must have shape [{len(of_BxD)}], not {list(values.shape)}.")
    return values


def scalar(outputs: Mapping[str, jax.Array], given: str | float) -> jax.Array | float:
    """A scale or a bias as a config gives it: the name of an output, or a number."""
    return outputs[given] if isinstance(given, str) else given


def captions(text_BxKxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """K captions of each image as C = B K texts: [C, D], and which image each belongs to, int32 [B] and [C]."""
    batch, count, width = text_BxKxD.shape
    number_B = jnp.arange(batch, dtype=jnp.int32)
    return text_BxKxD.reshape(-1, width), number_B, jnp.repeat(number_B, count)
