"""Mixtures of experts against a float64 oracle that sends each token by itself, on one device and on meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax import rules
from clipjax.errors import UserError
from clipjax.mesh import make_mesh, parameter_shardings
from clipjax.models import experts
from clipjax.models.image import ViT
from clipjax.models.mlp import Mlp
from clipjax.models.moe import MixtureMlp, route
from clipjax.models.options import BlockOptions
from clipjax.models.text import TextTransformer
from clipjax.models.transformer import Transformer
from clipjax.platform import compiling_for
from tests.models import transformer_oracle as oracle
from tests.models.derivatives import assert_gradients
from tests.models.program import tpu_text

OPTIONS = BlockOptions(heads=2, mlp_dim=12, experts=4)
RNG = np.random.default_rng(0)
X, WEIGHT = RNG.normal(size=(2, 4, 6, 8)).astype(np.float32)
COMPUTE = ["_every", "_sorted"]


def mixture(**settings):
    return MixtureMlp(dataclasses.replace(OPTIONS, **settings))


@pytest.fixture(params=COMPUTE)
def compute(request, monkeypatch):
    """Both ways of computing, whatever the platform."""
    chosen = getattr(experts, request.param)
    for name in COMPUTE:
        monkeypatch.setattr(experts, name, chosen)


def exact(params, module):
    return np.stack([oracle.mixture(x, params, module.options) for x in X.astype(np.float64)])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mlp": "swiglu", "experts_per_token": 1},
        {"experts_per_token": 3, "activation": "quick_gelu"},
        {"experts_per_token": 4},
    ],
    ids=str,
)
def test_equals_the_oracle(settings, compute):
    module = mixture(**settings)
    params = oracle.random_params(module, X)
    found = jax.jit(module.apply)({"params": params}, X)
    np.testing.assert_allclose(found, exact(oracle.float64(params), module), rtol=2e-5, atol=2e-5)

    loss = lambda p: jnp.sum(WEIGHT * module.apply({"params": p}, X))  # noqa: E731
    gradient = assert_gradients(loss, lambda p: np.sum(WEIGHT * exact(p, module)), params)
    # Renormalised over the one that is chosen, the weight is 1 and the router learns nothing.
    learns = np.abs(gradient["router"]["kernel"]).max() > 1e-3
    assert learns == (module.options.experts_per_token > 1)


def dense_params(params, expert):
    return jax.tree.map(lambda leaf: leaf[expert], params["experts"])


@pytest.mark.parametrize("per_token", [1, 2, 3, 4])
def test_equal_experts_are_the_dense_model(per_token, compute):
    """CLIP-MoE: upcycling from one checkpoint changes nothing, whatever the router says."""
    module = mixture(experts_per_token=per_token)
    params = oracle.random_params(module, X)
    one = dense_params(params, 2)
    same = jax.tree.map(lambda leaf: np.stack([leaf] * 4), one)
    found = module.apply({"params": {**params, "experts": same}}, X)
    np.testing.assert_allclose(found, Mlp(OPTIONS).apply({"params": one}, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("expert", range(4))
def test_a_certain_router_is_the_dense_model_of_that_expert(expert, compute):
    module = mixture(experts_per_token=2)
    params = oracle.random_params(module, X)
    x = np.concatenate([X, np.ones((4, 6, 1), np.float32)], axis=-1)  # a constant for the router
    kernels = {
        "fc_in": {"kernel": np.pad(params["experts"]["fc_in"]["kernel"], ((0, 0), (0, 1), (0, 0)))},
        "fc_out": jax.tree.map(
            lambda leaf: np.pad(leaf, ((0, 0),) * (leaf.ndim - 1) + ((0, 1),)),
            params["experts"]["fc_out"],
        ),
    }
    kernels["fc_in"]["bias"] = params["experts"]["fc_in"]["bias"]
    router = np.zeros((9, 4), np.float32)
    router[8, expert] = 200.0
    found = module.apply({"params": {"router": {"kernel": router}, "experts": kernels}}, x)
    one = jax.tree.map(lambda leaf: leaf[expert], kernels)
    wanted = Mlp(OPTIONS).apply({"params": one}, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("per_token", [1, 2, 5])
def test_renormalised_weights_are_a_softmax_over_the_best_scores(per_token):
    logits = (5 * RNG.normal(size=(50, 5))).astype(np.float32)
    weights, index = route(jnp.asarray(logits), per_token)
    best = -np.sort(-logits.astype(np.float64), axis=1)[:, :per_token]
    wanted = np.exp(best) / np.exp(best).sum(1, keepdims=True)
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(logits, np.asarray(index), 1), best, rtol=1e-6)
    half, same = route(jnp.asarray(logits, jnp.bfloat16), per_token)
    assert half.dtype == jnp.float32
    assert same.dtype == jnp.int32


def test_no_token_is_dropped(compute):
    """All tokens to one expert: no capacity stands in the way."""
    module = mixture(experts_per_token=1)
    params = oracle.random_params(module, X)
    params["router"]["kernel"] = np.zeros((8, 4), np.float32)  # ties: everyone to the first
    wanted = Mlp(OPTIONS).apply({"params": dense_params(params, 0)}, X)
    np.testing.assert_allclose(module.apply({"params": params}, X), wanted, rtol=1e-5, atol=1e-5)


# In a stack.

STACK = Transformer(3, OPTIONS, moe_layers=2)


def shapes(module, *args):
    variables = jax.eval_shape(module.init, jax.random.key(0), *args)
    return rules.paths(nn.unbox(variables)["params"])


@pytest.mark.parametrize("settings", [{}, {"unroll": 0}, {"remat": "full"}, {"moe_layers": 0}])
def test_the_last_blocks_are_mixtures(settings):
    module = STACK.clone(**settings)
    params = oracle.random_params(module, X)
    found = jax.jit(module.apply)({"params": params}, X)
    wanted = [oracle.transformer(x, oracle.float64(params), module) for x in X.astype(np.float64)]
    np.testing.assert_allclose(found, wanted, rtol=5e-5, atol=5e-5)


def test_names_and_shapes():
    found = {path: leaf.shape for path, leaf in shapes(STACK, X).items()}
    dense = {path: leaf.shape for path, leaf in shapes(Transformer(1, OPTIONS), X).items()}
    moe = "moe/blocks/mlp"
    assert {path: shape for path, shape in found.items() if path.startswith(moe)} == {
        f"{moe}/router/kernel": (2, 8, 4),
        f"{moe}/experts/fc_in/kernel": (2, 4, 8, 12),
        f"{moe}/experts/fc_in/bias": (2, 4, 12),
        f"{moe}/experts/fc_out/kernel": (2, 4, 12, 8),
        f"{moe}/experts/fc_out/bias": (2, 4, 8),
    }
    assert found["moe/blocks/attention/qkv_kernel"] == (2, 8, 3, 2, 4)
    assert found["blocks/mlp/fc_in/kernel"] == (1, 8, 12)
    assert not any(path.startswith("blocks/") for path in dense)  # all are mixtures
    plain = shapes(Transformer(3, dataclasses.replace(OPTIONS, experts=0)), X)
    assert all(path.startswith("blocks/") for path in plain)


def test_experts_start_different():
    params = jax.jit(STACK.init)(jax.random.key(0), X)["params"]["moe"]["blocks"]["mlp"]
    kernel = params["experts"]["fc_in"]["kernel"].value.reshape(8, -1)
    assert np.linalg.matrix_rank(kernel) == 8


def test_rules_see_each_layer_of_the_mixtures():
    found = rules.match(
        [(r"moe/blocks/1/mlp/router/.*", 1.0), (".*", 0.0)], shapes(STACK, X), "optim.freeze"
    )
    router = found["moe/blocks/mlp/router/kernel"]
    np.testing.assert_array_equal(router.ravel(), [0, 1])
    assert found["blocks/mlp/fc_in/kernel"] == 0.0


def gradients(module, params):
    loss = lambda p, x: jnp.sum(jnp.sin(module.apply({"params": p}, x)))  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, X)


@pytest.fixture(scope="module")
def wanted():
    params = oracle.random_params(STACK, X)
    return params, gradients(STACK, params)


@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 8},
        {"data": 2, "expert": 4},
        {"fsdp": 2, "expert": 2, "tensor": 2, "data": 1},
        {"data": 1, "expert": 8},  # more devices than experts: each has all of them
    ],
    ids=str,
)
def test_meshes_change_nothing(mesh, compute, wanted):
    params, single = wanted
    with jax.set_mesh(make_mesh(mesh)):
        found = gradients(STACK, params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-5)  # noqa: E731
    jax.tree.map(close, found, single)


def test_rows_of_other_devices_may_hold_anything(monkeypatch, wanted):
    """A product of groups says nothing about rows of no group, nor about their derivatives: on TPUs, old memory."""
    ragged_dot = jax.lax.ragged_dot

    def spoilt(x, sizes):
        return jnp.where((jnp.arange(len(x)) < jnp.sum(sizes))[:, None], x, jnp.nan)

    @jax.custom_vjp
    def careless(x, kernel, sizes):
        return spoilt(ragged_dot(x, kernel, sizes), sizes)

    def forward(x, kernel, sizes):
        return careless(x, kernel, sizes), (x, kernel, sizes)

    def backward(kept, dy):
        x, kernel, sizes = kept
        _, pull = jax.vjp(lambda x, kernel: ragged_dot(x, kernel, sizes), x, kernel)
        dx, dkernel = pull(dy)
        return spoilt(dx, sizes), dkernel, None

    careless.defvjp(forward, backward)
    monkeypatch.setattr(jax.lax, "ragged_dot", careless)
    monkeypatch.setattr(experts, "_every", experts._sorted)
    params, single = wanted
    with jax.set_mesh(make_mesh({"data": 2, "expert": 4})):
        found = gradients(STACK, params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-5)  # noqa: E731
    jax.tree.map(close, found, single)


def test_experts_are_split_over_their_axis():
    mesh = make_mesh({"data": 2, "expert": 4})
    boxed = jax.eval_shape(STACK.init, jax.random.key(0), X)["params"]
    shardings = rules.paths(parameter_shardings(boxed, mesh))
    for path, place in {
        "experts/fc_in/kernel": 1,
        "experts/fc_out/bias": 1,
        "router/kernel": 2,
    }.items():
        assert shardings[f"moe/blocks/mlp/{path}"].spec[place] == "expert"
    assert "expert" not in shardings["blocks/mlp/fc_in/kernel"].spec


def test_tpus_sort():
    """The program for TPUs multiplies groups of rows; those for others do not."""

    def primitives(platform):
        with compiling_for(platform):
            params = oracle.random_params(mixture(), X)
            return str(jax.make_jaxpr(lambda p: mixture().apply({"params": p}, X))(params))

    assert primitives("tpu").count("ragged_dot") >= 2
    assert "ragged_dot" not in primitives("gpu")


def test_what_tpus_make_of_it():
    """The real compiler, no TPU: kernels for groups of rows, and no exchange of tokens between devices."""
    options = dataclasses.replace(OPTIONS, mlp_dim=256, dtype="bfloat16")
    module = Transformer(
        4, options, moe_layers=2
    )  # parameters are split over `data` here, layer by layer
    x = jax.ShapeDtypeStruct((8, 64, 128), jnp.bfloat16)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))

    def loss(args):
        x, params = args
        return jnp.sum(module.apply(params, x).astype(jnp.float32))

    text = tpu_text(jax.grad(loss), (x, params), mesh={"data": 2, "expert": 2})
    assert "ragged-dot" in text
    assert "all-to-all" not in text


def test_half_precision_is_close(compute):
    module, half = mixture(), mixture(dtype="bfloat16")
    params = oracle.random_params(module, X)
    # From the same rounded tokens, so that both choose the same experts.
    x = jnp.asarray(X, jnp.bfloat16)
    exact, found = (m.apply({"params": params}, x) for m in (module, half))
    assert found.dtype == jnp.bfloat16
    assert 0 < np.abs(np.asarray(found, np.float32) - exact).max() < 0.03 * np.abs(exact).max()


def test_towers_take_mixtures():
    settings = dict(width=8, depth=2, heads=2, experts=3, moe_layers=1)
    image = ViT(size=8, patch=4, **settings)
    images = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    text = TextTransformer(length=5, vocab_size=11, end_token=10, **settings)
    ids = np.array([[1, 10, 0, 0, 0], [2, 3, 4, 10, 0]], np.int32)
    for tower, inputs, encode in ((image, images, oracle.vit), (text, ids, oracle.text)):
        params = oracle.random_params(tower, inputs)
        found = jax.jit(tower.apply)({"params": params}, inputs)
        wide = inputs.astype(np.float64) if tower is image else inputs
        for a, b in zip(found, encode(oracle.float64(params), wide, tower), strict=True):
            np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts_per_token": 5}, "from 1 to the number of experts, 4, not 5"),
        ({"experts_per_token": 0}, "from 1 to the number of experts"),
        ({"mlp_norm": True}, "no mlp_norm"),
        ({"quantize": "int8"}, "cannot be quantised"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(mixture(**settings).init, jax.random.key(0), X)


@pytest.mark.parametrize(
    ("experts_", "layers", "message"),
    [(4, 4, "to the depth of 3, not 4"), (4, -1, "not -1"), (0, 1, "needs experts")],
)
def test_refusals_of_stacks(experts_, layers, message):
    options = dataclasses.replace(OPTIONS, experts=experts_)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(Transformer(3, options, moe_layers=layers).init, jax.random.key(0), X)
