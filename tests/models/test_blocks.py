"""Every option of the blocks: values and gradients against the float64 oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax import rules
from clipjax.errors import UserError
from clipjax.models.options import BlockOptions, block_options
from clipjax.models.rope import ROPES, Rope, rope_table, rotate, with_prefix
from clipjax.models.text import TextTransformer
from clipjax.models.transformer import Transformer
from tests.models import transformer_oracle as oracle
from tests.models.derivatives import assert_gradients

OPTIONS = BlockOptions(heads=2, mlp_dim=12, eps=1e-3)
RNG = np.random.default_rng(0)
X, WEIGHT = RNG.normal(size=(2, 2, 5, 16)).astype(np.float32)
MASK = (RNG.random((2, 1, 5, 5)) < 0.5) | np.eye(5, dtype=bool)
EVA02 = dict(mlp="swiglu", mlp_norm=True, attention_norm=True, key_bias=False)


def stack(depth=2, **settings):
    return Transformer(depth, dataclasses.replace(OPTIONS, **settings))


def exact(params, module, rotation=None):
    """[B, N, W] in float64."""
    rows = zip(X.astype(np.float64), MASK[:, 0], strict=True)
    return np.stack([oracle.transformer(x, params, module, seen, rotation) for x, seen in rows])


@pytest.mark.parametrize(
    "settings",
    [
        {"mlp": "swiglu"},
        {"mlp": "swiglu", "mlp_norm": True},
        {"mlp_norm": True, "activation": "quick_gelu"},
        {"attention_norm": True},
        {"norm_order": "post"},
        {"norm_order": "post", "layer_scale": 0.1},
        {"key_bias": False},
        {"qkv_bias": False, "qk_norm": True},
        EVA02,
    ],
    ids=str,
)
def test_options(settings):
    module = stack(**settings)
    params = oracle.random_params(module, X)
    found = jax.jit(module.apply)({"params": params}, X, MASK)
    np.testing.assert_allclose(found, exact(oracle.float64(params), module), rtol=2e-5, atol=2e-5)

    loss = lambda p: jnp.sum(WEIGHT * module.apply({"params": p}, X, MASK))  # noqa: E731
    assert_gradients(loss, lambda p: np.sum(WEIGHT * exact(p, module)), params)


def shapes(module):
    variables = jax.eval_shape(module.init, jax.random.key(0), X)
    flat = rules.paths(nn.unbox(variables)["params"])
    return {path.removeprefix("blocks/"): leaf.shape for path, leaf in flat.items()}


def test_names_and_shapes():
    plain, eva = shapes(stack()), shapes(stack(**EVA02))
    assert {path: eva[path] for path in eva.keys() - plain.keys()} == {
        "mlp/fc_gate/kernel": (2, 16, 12),
        "mlp/fc_gate/bias": (2, 12),
        "mlp/norm/scale": (2, 12),
        "mlp/norm/bias": (2, 12),
        "attention/norm/scale": (2, 16),
        "attention/norm/bias": (2, 16),
    }
    assert plain.keys() <= eva.keys()
    assert plain["attention/qkv_bias"] == (2, 3, 2, 8)
    without = shapes(stack(qkv_bias=False))
    assert plain.keys() - without.keys() == {"attention/qkv_bias"}
    assert shapes(stack(norm_order="post")) == plain


def test_keys_without_bias_never_get_one():
    module = stack(key_bias=False)
    params = oracle.random_params(module, X)
    assert np.abs(params["blocks"]["attention"]["qkv_bias"][:, 1]).min() > 0
    loss = lambda p: jnp.sum(WEIGHT * module.apply({"params": p}, X))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)["blocks"]["attention"]["qkv_bias"]
    np.testing.assert_array_equal(gradient[:, 1], 0.0)
    assert np.abs(gradient[:, 0]).max() > 1e-3
    assert np.abs(gradient[:, 2]).max() > 1e-3


def test_options_of_a_tower_are_its_fields_of_the_same_names():
    tower = TextTransformer(heads=3, qk_norm=True, eps=1e-3, layer_scale=0.1)
    options = block_options(tower, mlp_dim=7, causal=True)
    wanted = BlockOptions(3, 7, qk_norm=True, eps=1e-3, layer_scale=0.1, causal=True)
    assert options == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mlp": "swigelu"}, "There is no MLP 'swigelu' .did you mean 'swiglu'"),
        ({"norm_order": "prae"}, "norm_order cannot be 'prae' .did you mean 'pre'"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(stack(**settings).init, jax.random.key(0), X)


# Rotary positions.


def table(pairs, tokens=5, size=8):
    angles = np.random.default_rng(3).uniform(-3, 3, (tokens, size // 2))
    return angles, np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)[:, None], pairs


@pytest.mark.parametrize("pairs", ["adjacent", "half"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_rotated_queries_and_keys(pairs, qk_norm):
    angles, rotation, _ = table(pairs)
    module = stack(rotation=pairs, qk_norm=qk_norm)
    params = oracle.random_params(module, X)
    found = jax.jit(module.apply)({"params": params}, X, MASK, rotation)
    wanted = exact(oracle.float64(params), module, (angles, pairs))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    still = jax.jit(module.apply)({"params": params}, X, MASK)
    assert np.abs(found - still).max() > 0.1

    loss = lambda p: jnp.sum(WEIGHT * module.apply({"params": p}, X, MASK, rotation))  # noqa: E731
    assert_gradients(loss, lambda p: np.sum(WEIGHT * exact(p, module, (angles, pairs))), params)


@pytest.mark.parametrize("pairs", ["adjacent", "half"])
def test_rotation_before_any_implementation(pairs):
    _, rotation, _ = table(pairs)
    module = stack(rotation=pairs)
    params = oracle.random_params(module, X)
    found = [
        jax.jit(stack(rotation=pairs, attention_impl=impl).apply)(
            {"params": params}, X, MASK, rotation
        )
        for impl in ("einsum", "xla")
    ]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pairs", ["adjacent", "half"])
def test_rotate(pairs):
    angles, rotation, _ = table(pairs)
    x = X.reshape(2, 5, 2, 8)
    found = rotate(jnp.asarray(x), rotation, pairs)
    for b, n, h in np.ndindex(2, 5, 2):
        wanted = oracle.turned(x[b, n, h].astype(np.float64), angles[n], pairs)
        np.testing.assert_allclose(found[b, n, h], wanted, atol=1e-6)
    half = rotate(jnp.asarray(x, jnp.bfloat16), rotation, pairs)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), found, atol=0.03)


@pytest.mark.parametrize("name", ROPES)
def test_logits_depend_on_the_distance_alone(name):
    """Moved by one row and one column, a query and a key have the same product."""
    rope = ROPES[name]
    side, size = 4, 16
    rotation = rope_table(rope, side, size, class_token=True)[:, None]
    one = np.broadcast_to(RNG.normal(size=size).astype(np.float32), (1, side * side, 1, size))
    other = np.broadcast_to(RNG.normal(size=size).astype(np.float32), (1, side * side, 1, size))
    query, key = (rotate(jnp.asarray(x), rotation, rope.pairs)[0, :, 0] for x in (one, other))
    logits = np.asarray(query @ key.T, np.float64)
    step = side + 1
    for n, m in [(0, 1), (1, 0), (0, 4), (2, 5), (6, 9)]:
        np.testing.assert_allclose(logits[n, m], logits[n + step, m + step], atol=1e-5)
    assert abs(logits[0, 1] - logits[1, 0]) > 1e-2  # it has a direction,
    assert abs(logits[0, 1] - logits[0, 4]) > 1e-2  # and an axis


def test_scaled_to_another_grid():
    """Twice as many patches along each side, scaled to the first grid: every other one stands where one stood."""
    rope = Rope("adjacent")
    small = rope_table(rope, 3, 8).reshape(2, 3, 3, 4)
    large = rope_table(rope, 6, 8, grid=3).reshape(2, 6, 6, 4)
    np.testing.assert_allclose(large[:, ::2, ::2], small, atol=1e-6)


def test_what_stands_before_the_patches_does_not_turn():
    rotation = with_prefix(rope_table(ROPES["eva"], 2, 8)[:, None], 3)
    assert rotation.shape == (2, 1, 7, 4)
    x = jnp.asarray(RNG.normal(size=(1, 7, 1, 8)), jnp.float32)
    y = rotate(x, rotation, "adjacent")
    np.testing.assert_array_equal(y[:, :4], x[:, :4])  # nor does the patch at (0, 0)
    assert np.abs(y - x)[:, 4:].min(axis=(0, 2, 3)).max() > 0
    with pytest.raises(UserError, match="that 4 divides, not 6"):
        rope_table(ROPES["eva"], 2, 6)
