"""BERT against a float64 oracle in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.bert import Bert

MODEL = Bert(vocab_size=13, width=12, depth=2, heads=3, mlp_dim=20, max_positions=9)
TEXT = np.array([[3, 7, 1, 12, 0, 0, 0], [5, 2, 9, 4, 6, 11, 8], [1, 0, 0, 0, 0, 0, 0]], np.int32)


def oracle(params, ids: np.ndarray) -> np.ndarray:
    """The tokens [L, W] of one text without padding."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    x = params["token_embedding"][ids] + params["position_embedding"][: len(ids)]
    x = norm(x + params["type_embedding"][0], params["embedding_norm"])
    for index in range(MODEL.depth):
        p = params[f"layer_{index}"]
        q, k, v = (dense(x, p["attention"][name]) for name in ("query", "key", "value"))
        heads = []
        for head in range(MODEL.heads):
            part = slice(head * 4, head * 4 + 4)
            weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(4))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        y = dense(np.concatenate(heads, axis=1), p["attention"]["out"])
        x = norm(x + y, p["attention_norm"])
        y = dense(x, p["mlp_in"])
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = norm(x + dense(y, p["mlp_out"]), p["mlp_norm"])
    return x


@pytest.fixture(scope="module")
def params():
    shapes = nn.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), TEXT)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.5, shapes)


def test_equals_the_oracle_and_ignores_padding(params):
    exact = jax.tree.map(np.float64, params)
    pooled, tokens = jax.jit(MODEL.apply)({"params": params}, TEXT)
    assert tokens.shape == (3, 7, 12)
    for row, ids in enumerate(TEXT):
        wanted = oracle(exact, ids[ids != 0])
        close = {"rtol": 2e-5, "atol": 2e-5}
        np.testing.assert_allclose(tokens[row, : len(wanted)], wanted, **close)
        np.testing.assert_allclose(pooled[row], wanted.mean(0), **close)


def test_nothing_but_padding(params):
    pooled, tokens = jax.jit(MODEL.apply)({"params": params}, np.zeros((2, 7), np.int32))
    assert not np.any(pooled)
    assert np.all(np.isfinite(tokens))


def test_half_precision_outputs_float32(params):
    exact = jax.jit(MODEL.apply)({"params": params}, TEXT)
    half = jax.jit(MODEL.clone(dtype=jnp.bfloat16).apply)({"params": params}, TEXT)
    for a, b in zip(exact, half, strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() < 0.1


def test_bad_shapes():
    with pytest.raises(UserError, match="at most 9 tokens, not 10"):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 10), jnp.int32))
    with pytest.raises(UserError, match="width of 12 cannot be split into 5 heads"):
        jax.eval_shape(MODEL.clone(heads=5).init, jax.random.key(0), TEXT)


def test_size_of_minilm():
    shapes = jax.eval_shape(Bert().init, jax.random.key(0), TEXT)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 22_565_376
