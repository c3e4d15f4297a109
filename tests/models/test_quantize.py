"""Products in 8 bits: against the rounding written out in float64, in towers, in training, for TPUs."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.models import example_batch, image_section, make_model, model_section, text_section
from clipjax.models.bert import Bert
from clipjax.models.options import BlockOptions
from clipjax.models.quantize import KINDS, quantized_matmul
from clipjax.models.transformer import Transformer
from clipjax.prepare import prepare
from clipjax.step import init_state
from clipjax.workdir import claim, resolve
from tests.models.program import compiled_dtypes, product_dtypes, tpu_text
from tests.tiny_run import tiny_config

pytest.importorskip("qwix")
RNG = np.random.default_rng(0)


def large_are_positive(matrix):
    """The numbers that are largest in their row or column, without their sign.

    In int8 the largest number is at 127.5 steps: 127, if positive. If negative it lies in the middle between two steps,
    and the last bit of the scale decides.
    """
    size = np.abs(matrix)
    least = np.minimum(size.max(0, keepdims=True), size.max(1, keepdims=True))
    return np.where(size >= least, size, matrix).astype(np.float32)


# Rows and columns of very different sizes, as activations and outlier channels have them.
X = large_are_positive(RNG.normal(size=(33, 48)) * 10.0 ** RNG.uniform(-3, 3, (33, 1)))
KERNEL = large_are_positive(RNG.normal(size=(48, 20)) * 10.0 ** RNG.uniform(-2, 2, (1, 20)))
DY = large_are_positive(RNG.normal(size=(33, 20)))


def rounded(matrix, axis, kind):
    """(the matrix as 8 bits can hold it, the size of a step at each number), one scale along `axis`; float64.

    Quotients are those of float32: which way a number between two steps falls is decided there.
    """
    largest = np.abs(matrix).max(axis, keepdims=True)
    scale = largest / np.float32({"int8": 127.5, "fp8": 448.0}[kind])
    quotient = (matrix / scale).astype(np.float64)
    scale = scale.astype(np.float64)
    if kind == "int8":
        return np.clip(np.rint(quotient), -127, 127) * scale, scale + 0 * quotient
    # float8_e4m3fn: 3 bits behind the leading one, exponents from -6 to 8.
    exponent = np.clip(np.floor(np.log2(np.maximum(np.abs(quotient), 1e-30))), -6, 8)
    step = 2.0 ** (exponent - 3)
    return np.rint(quotient / step) * step * scale, step * scale


def product(left, right, kind):
    return rounded(left, 1, kind)[0] @ rounded(right, 0, kind)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_product_and_gradients(kind):
    def loss(x, kernel):
        y = quantized_matmul(x, kernel, kind)
        return jnp.sum(y * DY), y

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, y), (dx, dkernel) = step(X, KERNEL)
    size = np.linalg.norm(X, axis=1, keepdims=True) * np.linalg.norm(KERNEL, axis=0)
    assert (np.abs(y - product(X, KERNEL, kind)) / size).max() < 1e-6
    # The gradient of the input is in 8 bits too, that of the kernel is not.
    size = np.linalg.norm(DY, axis=1, keepdims=True) * np.linalg.norm(KERNEL, axis=1)
    assert (np.abs(dx - product(DY, KERNEL.T, kind)) / size).max() < 1e-6
    np.testing.assert_allclose(dkernel, X.T.astype(np.float64) @ DY, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_error_of_a_product_is_bounded(kind):
    """No product is further from the exact one than if every number were half a step off, all in one direction."""
    x, kernel = X.astype(np.float64), KERNEL.astype(np.float64)
    half_x, half_kernel = rounded(X, 1, kind)[1] / 2, rounded(KERNEL, 0, kind)[1] / 2
    bound = np.abs(x) @ half_kernel + half_x @ np.abs(kernel) + half_x @ half_kernel
    error = np.abs(np.asarray(quantized_matmul(X, KERNEL, kind), np.float64) - x @ kernel)
    assert (error <= bound * (1 + 1e-5)).all()
    typical = np.linalg.norm(error / np.linalg.norm(KERNEL, axis=0)) / np.linalg.norm(X)
    assert 1e-4 < typical < {"int8": 0.02, "fp8": 0.04}[kind]


def test_rows_of_zeros_and_half_precision():
    y = quantized_matmul(jnp.zeros((3, 8), jnp.bfloat16), jnp.ones((8, 4), jnp.bfloat16), "int8")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, 0)


OPTIONS = BlockOptions(heads=2, mlp_dim=64)
STACK = Transformer(2, OPTIONS)
TOKENS = RNG.normal(size=(4, 9, 32)).astype(np.float32)


def quantized_stack(kind):
    return STACK.clone(options=dataclasses.replace(OPTIONS, quantize=kind))


def gradients(module, params, inputs=TOKENS):
    loss = lambda p: jnp.mean(jnp.square(module.apply({"params": p}, inputs) - 1.0))  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))(params)


def losses(module, params):
    """The loss of `gradients` for each of 32 inputs, float64 [32]."""
    inputs = np.random.default_rng(5).normal(size=(32, *TOKENS.shape)).astype(np.float32)

    def loss(x):
        return jnp.mean(jnp.square(module.apply({"params": params}, x) - 1.0))

    return np.asarray(jax.jit(lambda xs: jax.lax.map(loss, xs))(inputs), np.float64)


def cosine(a, b):
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]).astype(np.float64) for t in (a, b)
    )
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def stack():
    params = nn.unbox(jax.jit(STACK.init)(jax.random.key(0), TOKENS)["params"])
    return params, gradients(STACK, params)


@pytest.mark.parametrize("kind", KINDS)
def test_tower_is_close_to_the_float_one(kind, stack):
    params, (loss, exact) = stack
    found_loss, found = gradients(quantized_stack(kind), params)
    assert abs(found_loss - loss) < 0.01 * loss
    assert found_loss != loss
    assert cosine(found, exact) > 0.99
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        other = exact
        for key in path:
            other = other[key.key]
        assert cosine(leaf, other) > 0.97, path


def test_loops_recomputation_and_meshes_change_nothing(stack):
    params, _ = stack
    module = quantized_stack("int8")
    wanted = gradients(module, params)
    other = module.clone(remat="dots", unroll=0)
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        found = gradients(other, params)
        there = losses(other, params)
    # Where sums are done in another order, by another program or processor, a rounding may fall the other way: one step
    # of 255. So two programs differ by a part of what the rounding itself costs; another scale would cost all of it.
    assert cosine(found[1], wanted[1]) > 0.9999
    here, exact = losses(module, params), losses(STACK, params)
    size = lambda x: np.sqrt(np.mean(np.square(x)))  # noqa: E731
    assert size(there - here) < 0.5 * size(here - exact)


def tiny_model(**settings):
    image = image_section(size=16, patch=8, width=16, depth=2, heads=2, pool="map")
    text = text_section(length=8, vocab_size=16, width=16, depth=2, heads=2, end_token=3)
    return model_section(image, text, embed_dim=8, **settings)


def shapes(config):
    return jax.eval_shape(make_model(config).init, jax.random.key(0), example_batch(config))


def test_parameters_are_the_same():
    plain = shapes(tiny_model())
    for kind in KINDS:
        assert shapes(tiny_model(quantize=kind)) == plain


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_only_the_blocks_are_quantised(kind, dtype):
    """Of each block four layers, with two of three products; not the stem, the pooling and the projections."""
    config = tiny_model(quantize=kind, dtype="bfloat16")
    model, batch = make_model(config), example_batch(config, 2)

    def loss(params, batch):
        outputs = model.apply(params, batch)
        return jnp.sum(outputs["image_embedding"] * outputs["text_embedding"])

    found = product_dtypes(jax.grad(loss), nn.unbox(shapes(config)), batch)
    result = "int32" if kind == "int8" else "float32"
    assert (
        found[dtype, dtype, result] == 2 * 4 * 2
    )  # towers, layers (in a loop over blocks), products
    others = {pair[:2] for pair in found} - {(dtype, dtype)}
    assert others == {("bfloat16", "bfloat16")}
    assert found["bfloat16", "bfloat16", "bfloat16"] > 2 * 4  # kernels' gradients and the rest


def test_bert_is_quantised_too():
    model = Bert(vocab_size=13, width=12, depth=2, heads=3, mlp_dim=20, quantize="int8")
    text = jnp.ones((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), text)
    plain = jax.eval_shape(model.clone(quantize=None).init, jax.random.key(0), text)
    assert params == plain
    found = product_dtypes(model.apply, nn.unbox(params), text)
    assert found["int8", "int8", "int32"] == 2 * 6


def train(quantize, seed=0):
    """Losses of 30 steps of the real train step on one batch."""
    config = tiny_config("evals={}", "total_samples=30 steps", "optim.lr=0.003")
    config.model.quantize = quantize
    run = prepare(config, make_mesh(config.mesh, jax.devices()[:1]))
    state = init_state(run.model, run.config, run.optimizer, run.mesh)
    rng = np.random.default_rng(seed)
    side, length = config.model.image.size, config.model.text.length
    batch = {
        "image": rng.integers(0, 256, (config.batch_size, side, side, 3), np.uint8),
        "text": rng.integers(
            4, config.model.text.vocab_size, (config.batch_size, length), np.int32
        ),
        "sample_seed": np.arange(config.batch_size, dtype=np.uint32),
    }
    batch["text"][:, -1] = config.model.text.end_token
    found = []
    with jax.set_mesh(run.mesh):
        for _ in range(30):
            state, metrics = run.step(state, batch)
            found.append(float(metrics["loss"]))
    return found


@pytest.mark.parametrize("seed", [0, 3])
def test_training_learns_as_in_floats(seed):
    """On the whole: single steps of two runs that round differently part and meet again."""
    exact, found = train(None, seed), train("int8", seed)
    assert exact[-1] < 0.05 * exact[0]
    assert found[-1] < 0.05 * found[0]
    assert np.mean(found) == pytest.approx(np.mean(exact), rel=0.02)
    assert found != exact


def test_a_run_goes_on_with_the_same_products(tmp_path):
    """Which program computes attention may change; 8 bits or not may not."""
    config = resolve(tiny_config("evals={}"), epoch=100)
    claim(tmp_path, config)
    config.model.attention = "xla"
    claim(tmp_path, config)
    config.model.quantize = "int8"
    with pytest.raises(UserError, match=r"model.quantize \(there None, now 'int8'\)\. Choose"):
        claim(tmp_path, config)
    config.model.quantize = None
    file = tmp_path / "config.json"
    old = json.loads(file.read_text())
    del old["model"]["attention"], old["model"]["quantize"]  # a run of before these settings
    file.write_text(json.dumps(old))
    claim(tmp_path, config)


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match=r"model.quantize must be None, int8, fp8, not 'int4'"):
        make_model(tiny_model(quantize="int4"))
    frozen = model_section(image_section("efficientnet_lite0"), quantize="int8")
    with pytest.raises(UserError, match="'efficientnet_lite0' cannot be quantised"):
        make_model(frozen)
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"needs the package qwix; .*clipjax\[quantize\]"):
        make_model(tiny_model(quantize="fp8"))
    make_model(tiny_model())


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "s8"), ("fp8", "f8e4m3fn")])
def test_tpus_multiply_8_bits(kind, dtype):
    """The real compiler, no TPU: on a mesh, in a loop over layers, recomputed."""
    options = BlockOptions(heads=2, mlp_dim=512, quantize=kind, dtype="bfloat16")
    module = Transformer(2, options, remat="full")

    def loss(args):
        x, params = args
        return jnp.sum(module.apply(params, x).astype(jnp.float32))

    x = jax.ShapeDtypeStruct((8, 64, 256), jnp.bfloat16)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    found = compiled_dtypes(tpu_text(jax.grad(loss), (x, params), mesh={"data": 2, "fsdp": 2}))
    result = "s32" if kind == "int8" else "f32"
    assert found[dtype, dtype, result] >= 4 * 2  # layers of a block, products
    assert found["bf16", "bf16", "bf16"] >= 4  # gradients of kernels
    assert all(left == right for left, right, _ in found)
