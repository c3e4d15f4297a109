"""Attention with every kind of mask, and its value and derivatives in float64 by differences."""

import functools

import numpy as np
import pytest

from clipjax.models import splash
from clipjax.platform import compiling_for
from tests.models import transformer_oracle as oracle

BATCH, TOKENS, HEADS, SIZE = 2, 5, 2, 4
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE, WEIGHT = RNG.normal(size=(4, BATCH, TOKENS, HEADS, SIZE)).astype(np.float32)
# Every query sees its own key, and the first one.
OWN = np.eye(TOKENS, dtype=bool) | (np.arange(TOKENS) == 0)
KEYS = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], bool)[:, None, None]
# name -> (mask, causal)
MASKS = {
    "none": (None, False),
    "causal": (None, True),
    "keys": (KEYS, False),
    "one mask of keys": (KEYS[:1], False),
    "causal and keys": (KEYS, True),
    "any": ((RNG.random((BATCH, 1, TOKENS, TOKENS)) < 0.5) | OWN, False),
    "any, causal": ((RNG.random((BATCH, HEADS, TOKENS, TOKENS)) < 0.5) | OWN, True),
}


def seen(name):
    """bool [B, H, N, M]."""
    mask, causal = MASKS[name]
    full = np.ones((BATCH, HEADS, TOKENS, TOKENS), bool)
    full = full if mask is None else full & mask
    return full & np.tri(TOKENS, dtype=bool) if causal else full


def attention64(query, key, value, seen_BxHxNxM):
    y = np.zeros(query.shape)
    for b, n, h in np.ndindex(*query.shape[:3]):
        y[b, n, h] = oracle.softmax_average(
            query[b, n, h], key[b, :, h], value[b, :, h], seen_BxHxNxM[b, h, n]
        )
    return y


@functools.cache
def wanted(name):
    """(attention [B, N, H, d], derivatives of sum(WEIGHT * attention) to query, key and value)."""
    arrays, visible = [x.astype(np.float64) for x in (QUERY, KEY, VALUE)], seen(name)
    gradients = []
    for array in arrays:
        gradient = np.zeros(array.shape)
        for place in np.ndindex(*array.shape):
            before, sums = array[place], []
            for step in (1e-5, -1e-5):
                array[place] = before + step
                sums.append(np.sum(WEIGHT * attention64(*arrays, visible)))
            array[place] = before
            gradient[place] = (sums[0] - sums[1]) / 2e-5
        gradients.append(gradient)
    return attention64(*arrays, visible), gradients


@pytest.fixture
def splash_here(monkeypatch):
    """Splash as if this were a TPU: its kernels are interpreted."""
    interpreted = functools.partial(splash.kernels.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash.kernels, "make_splash_mha", interpreted)
    with compiling_for("tpu"):
        yield
