"""Squared error of the crop."""

import jax.numpy as jnp


def crop_error(outputs, batch):
    """Mean over the batch and the four coordinates of (prediction - truth)^2."""
    error_Bx4 = outputs["crop"].astype(jnp.float32) - batch["crop"]
    return jnp.mean(jnp.square(error_Bx4)), {"worst": jnp.max(jnp.abs(error_Bx4))}
