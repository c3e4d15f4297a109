"""Layers and the stack of blocks against float64 oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.cost import flops
from clipjax.errors import UserError
from clipjax.models.attention import SelfAttention, dot_product_attention
from clipjax.models.layers import ACTIVATIONS, LayerNorm, activation, layer_norm
from clipjax.models.options import BlockOptions
from clipjax.models.pooling import AttentionPool, MapPool
from clipjax.models.transformer import Transformer
from tests.models import transformer_oracle as oracle
from tests.models.derivatives import assert_gradients

OPTIONS = BlockOptions(heads=2, mlp_dim=24)
STACK = Transformer(3, OPTIONS)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
# Every query sees itself and some others.
MASK = (RNG.random((2, 1, 5, 5)) < 0.5) | np.eye(5, dtype=bool)


def with_options(**settings):
    return STACK.clone(options=dataclasses.replace(OPTIONS, **settings))


def close(found, wanted, tolerance=2e-5):
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    close(activation(name)(x), oracle.ACTIVATIONS[name](x.astype(np.float64)), 2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_of_activations(name):
    x, step = np.linspace(-6, 6, 101), 1e-5
    above, below = (oracle.ACTIVATIONS[name](x + d) for d in (step, -step))
    found = jax.vmap(jax.grad(activation(name)))(x.astype(np.float32))
    close(found, (above - below) / (2 * step), 1e-5)
    extremes = jax.vmap(jax.grad(activation(name)))(jnp.array([-1e4, 1e4]))
    np.testing.assert_array_equal(extremes, [0, 1])


def test_activations_differ():
    x = np.linspace(-3, 3, 31)
    exact, tanh, quick = (oracle.ACTIVATIONS[n](x) for n in ("gelu", "gelu_tanh", "quick_gelu"))
    assert np.abs(exact - tanh).max() > 1e-4
    assert np.abs(exact - quick).max() > 1e-2
    with pytest.raises(UserError, match="did you mean 'quick_gelu'"):
        activation("quickgelu")


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_layer_norm_of_values_far_from_zero(eps):
    x = (X + 1000).astype(np.float32)
    module = LayerNorm(eps)
    params = oracle.random_params(module, x)
    wanted = oracle.layer_norm(x.astype(np.float64), oracle.float64(params), eps)
    close(module.apply({"params": params}, x), wanted, 1e-3)
    half = module.clone(dtype="bfloat16").apply({"params": params}, X.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_attention_survives_huge_logits():
    query = jnp.full((1, 1, 1, 4), 1e4)
    key = jnp.array([1e4, -1e4]).reshape(1, 2, 1, 1) * jnp.ones(4)
    value = jnp.arange(8.0).reshape(1, 2, 1, 4)
    close(dot_product_attention(query, key, value), value[:, :1])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(qk_norm, masked):
    module = SelfAttention(BlockOptions(2, 24, qk_norm=qk_norm, eps=1e-4))
    params = oracle.random_params(module, X)
    seen = MASK if masked else np.ones_like(MASK)
    found = jax.jit(module.apply)({"params": params}, X, MASK if masked else None)
    wanted = [
        oracle.attention(x, oracle.float64(params), s[0], module.options)
        for x, s in zip(X.astype(np.float64), seen, strict=True)
    ]
    close(found, np.stack(wanted))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layer_scale": 0.1, "qk_norm": True, "activation": "quick_gelu", "eps": 1e-2},
    ],
)
def test_stack(settings):
    module = with_options(**settings)
    params = oracle.random_params(module, X)
    found = jax.jit(module.apply)({"params": params}, X, MASK)
    wanted = [
        oracle.transformer(x, oracle.float64(params), module, s[0])
        for x, s in zip(X.astype(np.float64), MASK, strict=True)
    ]
    close(found, np.stack(wanted))


@pytest.mark.parametrize("masked", [False, True])
def test_map_pool(masked):
    module = MapPool(heads=2, mlp_dim=24, eps=1e-3)
    module_settings = type("Settings", (), {"heads": 2, "eps": 1e-3, "activation": "gelu"})
    params = oracle.random_params(module, X)
    seen = MASK[:, 0, 0] if masked else np.ones((2, 5), bool)
    found = jax.jit(module.apply)({"params": params}, X, seen if masked else None)
    wanted = [
        oracle.map_pool(x, oracle.float64(params), module_settings, s)
        for x, s in zip(X.astype(np.float64), seen, strict=True)
    ]
    close(found, np.stack(wanted))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_pool(masked):
    """CoCa's: as many answers as queries, of another width than the tokens."""
    module = AttentionPool(queries=3, width=12, heads=4, eps=1e-3)
    params = oracle.random_params(module, X)
    seen = MASK[:, 0, 0] if masked else np.ones((2, 5), bool)
    found = jax.jit(module.apply)({"params": params}, X, seen if masked else None)

    def exact(params):
        rows = zip(X.astype(np.float64), seen, strict=True)
        return np.stack([oracle.attention_pool(x, params["params"], 4, 1e-3, s) for x, s in rows])

    wanted = exact({"params": oracle.float64(params)})
    assert wanted.shape == (2, 3, 12)
    close(found, wanted)
    weight = RNG.normal(size=wanted.shape).astype(np.float32)
    loss = lambda p: jnp.sum(weight * module.apply(p, X, seen))  # noqa: E731
    assert_gradients(loss, lambda p: np.sum(weight * exact(p)), {"params": params})


def value_and_gradients(module, params):
    def loss(params, x):
        return jnp.sum(jnp.sin(module.apply({"params": params}, x, MASK)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, X)


@pytest.fixture(scope="module")
def reference():
    params = oracle.random_params(STACK, X)
    return params, value_and_gradients(STACK, params)


@pytest.mark.parametrize(
    "settings",
    [{"unroll": 2}, {"unroll": 0}, {"remat": "full"}, {"remat": "dots", "unroll": 0}],
    ids=str,
)
def test_unroll_and_remat_change_nothing(reference, settings):
    params, wanted = reference
    found = value_and_gradients(STACK.clone(**settings), params)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), found, wanted)


def test_remat_repeats_what_it_says(reference):
    params, _ = reference

    def training(remat):
        module = STACK.clone(remat=remat)
        loss = lambda p, x: jnp.sum(module.apply({"params": p}, x))  # noqa: E731
        return flops.count(jax.grad(loss, argnums=(0, 1)), params, X)

    batch, tokens, width = X.shape
    attention = 3 * 2 * 2 * batch * tokens * tokens * width
    kernels = 3 * 2 * batch * tokens * (4 * width * width + 2 * width * 24)
    forward = flops.count(lambda p: STACK.apply({"params": p}, X), params)
    assert forward == attention + kernels
    assert training("none") == 3 * forward
    # All but each block's last product, whose result the backward pass does not need.
    assert training("dots") == 3 * forward + attention
    last = 3 * 2 * batch * tokens * width * 24
    assert training("full") == 4 * forward - last


def test_layers_start_different_and_all_train():
    params = jax.jit(STACK.init)(jax.random.key(0), X)["params"]
    kernel = params["blocks"]["mlp"]["fc_in"]["kernel"].value
    assert kernel.shape == (3, 8, 24)
    assert not np.allclose(kernel[0], kernel[1])
    out = params["blocks"]["attention"]["out"]["kernel"].value
    assert 0.5 < float(jnp.std(out)) / (8**-0.5 * 6**-0.5) < 1.5


def test_half_precision_is_close(reference):
    params, _ = reference
    exact = jax.jit(STACK.apply)({"params": params}, X)
    half = jax.jit(with_options(dtype="bfloat16").apply)({"params": params}, X)
    assert half.dtype == jnp.bfloat16
    error = np.abs(np.asarray(half, np.float32) - exact).max()
    assert 0 < error < 0.05 * np.abs(exact).max()


def test_refusals():
    with pytest.raises(UserError, match="8 cannot be split into 3 heads"):
        jax.eval_shape(with_options(heads=3).init, jax.random.key(0), X)
    with pytest.raises(UserError, match="did you mean 'full'"):
        jax.eval_shape(STACK.clone(remat="ful").init, jax.random.key(0), X)


def plain_layer_norm(x, scale, bias, eps, dtype):
    x = x.astype(jnp.float32)
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + eps)
    return (x * scale + bias).astype(dtype)


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (2, 3, 2, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_layer_norm(shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + rng.normal(size=shape), dtype)
    pull = rng.normal(size=shape).astype(np.float32)
    params = [jnp.asarray(rng.normal(size=shape[-1]), jnp.float32) for _ in range(2)]

    def total(norm):
        return lambda x, scale, bias: jnp.sum(norm(x, scale, bias, 1e-5, dtype) * pull)

    found, wanted = (
        jax.jit(jax.grad(total(norm), argnums=(0, 1, 2)))(x, *params)
        for norm in (layer_norm, plain_layer_norm)
    )
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        assert np.linalg.norm(a - b) <= (3e-6 if dtype == "float32" else 3e-3) * np.linalg.norm(b)


def test_layer_norm_keeps_its_input_as_it_came():
    x = jnp.ones((8, 64), jnp.bfloat16)
    _, pullback = jax.vjp(lambda x: layer_norm(x, jnp.ones(64), jnp.zeros(64), 1e-5, "bfloat16"), x)
    kept = [v for v in jax.tree.leaves(pullback) if hasattr(v, "dtype") and v.size >= x.size]
    assert [v.dtype for v in kept] == [jnp.bfloat16]
