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


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def oracle(params, ids: np.ndarray, positions=None, activation=gelu) -> np.ndarray:
    """The tokens [L, W] of one text without padding, at 0, 1, 2, ... unless `positions` are given."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    positions = np.arange(len(ids)) if positions is None else positions
    x = params["token_embedding"][ids] + params["position_embedding"][positions]
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
        y = activation(dense(x, p["mlp_in"]))
        x = norm(x + dense(y, p["mlp_out"]), p["mlp_norm"])
    return x


CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def params():
    """Those of a tower with every part that any `pool` needs."""
    tower = MODEL.clone(pool="pooler")
    shapes = nn.unbox(jax.eval_shape(tower.init, jax.random.key(0), TEXT)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.5, shapes)


def test_equals_the_oracle_and_ignores_padding(params):
    exact = jax.tree.map(np.float64, params)
    pooled, tokens = jax.jit(MODEL.apply)({"params": params}, TEXT)
    assert tokens.shape == (3, 7, 12)
    for row, ids in enumerate(TEXT):
        wanted = oracle(exact, ids[ids != 0])
        np.testing.assert_allclose(tokens[row, : len(wanted)], wanted, **CLOSE)
        np.testing.assert_allclose(pooled[row], wanted.mean(0), **CLOSE)


def test_pools_of_the_first_token(params):
    exact = jax.tree.map(np.float64, params)
    first, tokens = jax.jit(MODEL.clone(pool="class").apply)({"params": params}, TEXT)
    pooled, _ = jax.jit(MODEL.clone(pool="pooler").apply)({"params": params}, TEXT)
    np.testing.assert_array_equal(first, tokens[:, 0])
    for row, ids in enumerate(TEXT):
        wanted = oracle(exact, ids[ids != 0])[0]
        np.testing.assert_allclose(first[row], wanted, **CLOSE)
        wanted = np.tanh(wanted @ exact["pooler"]["kernel"] + exact["pooler"]["bias"])
        np.testing.assert_allclose(pooled[row], wanted, **CLOSE)
    plain = jax.eval_shape(MODEL.init, jax.random.key(0), TEXT)["params"]
    assert params.keys() - plain.keys() == {"pooler"}


def test_positions_from_an_offset(params):
    """RoBERTa counts only what is not padding, wherever that is, and the first token is at `pad_id + 1`."""
    model = MODEL.clone(position_offset=2, pad_id=1)
    text = np.array([[3, 7, 4, 1, 1], [1, 1, 5, 2, 9], [0, 1, 6, 1, 8], [4, 3, 2, 8, 9]], np.int32)
    pooled, tokens = jax.jit(model.apply)({"params": params}, text)
    exact = jax.tree.map(np.float64, params)
    for row, ids in enumerate(text):
        here = ids != 1
        wanted = oracle(exact, ids[here], positions=[2, 3, 4, 5, 6][: here.sum()])
        np.testing.assert_allclose(tokens[row, here], wanted, **CLOSE)
        np.testing.assert_allclose(pooled[row], wanted.mean(0), **CLOSE)


def test_activation(params):
    text = TEXT[1:2]
    _, tokens = jax.jit(MODEL.clone(activation="gelu_tanh").apply)({"params": params}, text)
    exact = jax.tree.map(np.float64, params)
    np.testing.assert_allclose(tokens[0], oracle(exact, text[0], None, gelu_tanh), **CLOSE)
    assert np.abs(tokens[0] - oracle(exact, text[0])).max() > 1e-4


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


def test_parameters_in_half_precision(params):
    model = MODEL.clone(pool="pooler", param_dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0), TEXT)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(shapes))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    outputs = [model.apply({"params": p}, TEXT) for p in (half, whole)]
    for a, b in zip(*outputs, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_bad_shapes():
    with pytest.raises(UserError, match="at most 9 tokens, not 10"):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 10), jnp.int32))
    with pytest.raises(UserError, match="width of 12 cannot be split into 5 heads"):
        jax.eval_shape(MODEL.clone(heads=5).init, jax.random.key(0), TEXT)
    with pytest.raises(UserError, match="at most 6 tokens, not 7"):
        jax.eval_shape(MODEL.clone(position_offset=3).init, jax.random.key(0), TEXT)
    with pytest.raises(UserError, match=r"pool cannot be 'pooled' .*'pooler'"):
        jax.eval_shape(MODEL.clone(pool="pooled").init, jax.random.key(0), TEXT)


def test_size_of_minilm():
    shapes = jax.eval_shape(Bert().init, jax.random.key(0), TEXT)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 22_565_376
