"""Stages that the tests name by import path."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def stretch(params, config, *, length, scale=1.0):
    """More positions of texts: the last one again."""
    old_LxD = params["text"]["position_embedding"]
    more = np.repeat(old_LxD[-1:], length - len(old_LxD), axis=0)
    params["text"]["position_embedding"] = jnp.concatenate([old_LxD, scale * more])
    config.model.text.length = length
    return params, config


def forgets(params, config):
    return params


def string(params, config):
    return "a", "b"


def half(params, config):
    """Parameters without their config."""
    params["text"]["position_embedding"] = params["text"]["position_embedding"][:2]
    del params["logit_scale"]
    params["extra"] = np.zeros(3)
    return params, config


def number(params, config):
    params["logit_scale"] = 3
    return params, config


def unknown(params, config):
    config.model.kind = "no_encoder"
    return params, config


def alone(params):
    return params


class Words(nn.Module):
    """A model of words by their numbers alone, which no tower says the shape of."""

    vocabulary: int = 7
    needs = ("words",)

    @nn.compact
    def __call__(self, batch, *, train=False):
        del train
        rows = self.param(
            "table", nn.initializers.zeros, (self.vocabulary, batch["words"].shape[1])
        )
        return {"rows": rows[batch["words"]]}
