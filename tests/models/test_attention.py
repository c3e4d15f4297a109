"""Every implementation of attention against one float64 oracle; which one runs where."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.models import attention
from clipjax.models.attention import IMPLEMENTATIONS, choose, dot_product_attention
from clipjax.models.image import ViT
from clipjax.models.splash import _blocks
from clipjax.models.text import TextTransformer
from clipjax.platform import compiling_for
from tests.models import attention_cases as cases
from tests.models.attention_cases import MASKS, splash_here  # noqa: F401
from tests.models.program import product_dtypes, shard_shapes, tpu_text

RNG = np.random.default_rng(1)


def value_and_gradients(implementation, arrays, mask, causal, weight):
    def loss(arrays):
        y = dot_product_attention(*arrays, mask, causal=causal, implementation=implementation)
        return jnp.sum(y.astype(jnp.float32) * weight), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return y, gradients


def check_case(implementation, name):
    mask, causal = MASKS[name]
    arrays = (cases.QUERY, cases.KEY, cases.VALUE)
    found = value_and_gradients(implementation, arrays, mask, causal, cases.WEIGHT)
    y, gradients = cases.wanted(name)
    np.testing.assert_allclose(found[0], y, rtol=2e-6, atol=2e-6)
    for gradient, exact in zip(found[1], gradients, strict=True):
        np.testing.assert_allclose(gradient, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_values_and_gradients(implementation, name):
    check_case(implementation, name)


@pytest.mark.parametrize("name", ["none", "causal", "one mask of keys", "causal and keys"])
def test_splash_values_and_gradients(splash_here, name):  # noqa: F811
    check_case("splash", name)


def draw(batch, tokens, heads, size):
    return tuple(RNG.normal(size=(4, batch, tokens, heads, size)).astype(np.float32))


@pytest.mark.parametrize(("tokens", "causal"), [(197, False), (1100, True)])
def test_splash_pads_to_whole_blocks(splash_here, tokens, causal):  # noqa: F811
    *arrays, weight = draw(1, tokens, 2, 8)
    found = value_and_gradients("splash", arrays, None, causal, weight)
    with compiling_for("cpu"):
        wanted = value_and_gradients("einsum", arrays, None, causal, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_blocks():
    assert [_blocks(n) for n in (1, 77, 128, 197, 577, 1024)] == [
        (128, 128),
        (128, 128),
        (128, 128),
        (256, 256),
        (640, 640),
        (1024, 1024),
    ]
    assert _blocks(1025) == (640, 1280)
    for tokens in range(1, 5000, 7):
        block, padded = _blocks(tokens)
        assert block % 128 == padded % block == 0
        assert tokens <= padded < tokens + 128 * (padded // block)


@pytest.mark.parametrize(("batch", "heads", "split"), [(4, 2, (1, 1)), (2, 3, (2, 3))])
def test_splash_on_a_mesh(splash_here, batch, heads, split):  # noqa: F811
    """A device's kernel gets its part of the batch and of the heads, or all of them where they do not divide."""
    *arrays, weight = draw(batch, 9, heads, 8)
    mask = np.arange(9) < RNG.integers(1, 10, (batch, 1, 1, 1))
    with compiling_for("cpu"):
        wanted = value_and_gradients("einsum", arrays, mask, False, weight)
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        found = value_and_gradients("splash", arrays, mask, False, weight)
        forward = functools.partial(dot_product_attention, implementation="splash")
        assert shard_shapes(forward, *arrays)[-3:] == [(split[0], 9, split[1], 8)] * 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


TOWERS = {
    "image": ViT(size=8, patch=4, width=8, depth=2, heads=2, pool="average", remat="dots"),
    "text": TextTransformer(6, 11, 8, depth=2, heads=2, end_token=10, unroll=0, remat="full"),
}
INPUTS = {
    "image": RNG.normal(size=(4, 8, 8, 3)).astype(np.float32),
    "text": np.array([[1, 10, 0, 0, 0, 0], [2, 3, 4, 5, 6, 10]] * 2, np.int32),
}


@pytest.mark.parametrize("part", TOWERS)
def test_splash_in_towers(part, splash_here):  # noqa: F811
    """Under a scan over layers or unrolled, recomputed, on a mesh."""
    tower, inputs = TOWERS[part], INPUTS[part]
    params = jax.jit(tower.init)(jax.random.key(0), inputs)["params"]

    def gradients(implementation):
        module = tower.clone(attention_impl=implementation)
        loss = lambda p: jnp.sum(jnp.sin(module.apply({"params": p}, inputs)[0]))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        found, wanted = gradients("splash"), gradients("einsum")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, wanted)


# Which one runs: everything that the choice depends on.


@dataclasses.dataclass(frozen=True)
class Case:
    platform: str
    tokens: int = 256
    size: int = 64
    dtype: str = "bfloat16"
    masked: bool = False
    has_cudnn: bool = True


def choice(implementation, case, monkeypatch):
    monkeypatch.setattr(attention, "has_cudnn", lambda: case.has_cudnn)
    x = jax.ShapeDtypeStruct((2, case.tokens, 4, case.size), jnp.dtype(case.dtype))
    mask = jax.ShapeDtypeStruct((2, 1, 1, case.tokens), bool) if case.masked else None
    with compiling_for(case.platform):
        return choose(implementation, x, x, mask)


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (Case("cpu"), "einsum"),
        (Case("cpu", tokens=4096), "einsum"),
        (Case("gpu"), "cudnn"),
        (Case("gpu", tokens=197), "cudnn"),
        (Case("gpu", size=72, dtype="float16"), "cudnn"),
        (Case("gpu", dtype="float32"), "einsum"),
        (Case("gpu", size=20), "einsum"),
        (Case("gpu", size=136), "einsum"),
        (Case("gpu", masked=True), "einsum"),
        (Case("gpu", has_cudnn=False), "einsum"),
        (Case("tpu"), "einsum"),
        (Case("tpu", tokens=1023), "einsum"),
        (Case("tpu", tokens=1024), "splash"),
        (Case("tpu", tokens=1024, masked=True, dtype="float32"), "splash"),
    ],
    ids=str,
)
def test_auto(case, wanted, monkeypatch):
    assert choice("auto", case, monkeypatch) == wanted


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_choice_that_works_is_kept(platform, monkeypatch):
    for name in IMPLEMENTATIONS[1:]:
        works = {"cudnn": platform == "gpu", "splash": platform == "tpu"}.get(name, True)
        if works:
            assert choice(name, Case(platform), monkeypatch) == name
        else:
            with pytest.raises(UserError, match=f"{name!r} runs on .*made for {platform}"):
                choice(name, Case(platform), monkeypatch)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("gpu", dtype="float32"), "bfloat16 or float16, not float32"),
        (Case("gpu", size=20), "that 8 divides, not 20"),
        (Case("gpu", size=256), "up to 128 .*not 256"),
        (Case("gpu", tokens=77, masked=True), "even number of tokens, not 77"),
        (Case("gpu", has_cudnn=False), "has an NVIDIA GPU"),
    ],
    ids=str,
)
def test_cudnn_refusals(case, reason, monkeypatch):
    with pytest.raises(UserError, match=reason):
        choice("cudnn", case, monkeypatch)


def test_splash_refuses_masks_that_differ_between_queries(splash_here):  # noqa: F811
    mask, _ = MASKS["any"]
    with pytest.raises(UserError, match="masks of keys only"):
        dot_product_attention(cases.QUERY, cases.KEY, cases.VALUE, mask, implementation="splash")


def test_there_is_no_cudnn_here():
    assert not attention.has_cudnn()


@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_is_called_with(masked, monkeypatch):
    """No GPU here, so this is all that is tested of cuDNN: the call. It has not been run."""
    calls = []
    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **k: calls.append((a, k)) or a[2]
    )
    query, key, value = jnp.zeros((3, 2, 6, 4, 16), jnp.bfloat16)
    mask = jnp.arange(6)[None, None, None] < jnp.array([3, 6])[:, None, None, None]
    with compiling_for("gpu"):
        dot_product_attention(
            query, key, value, mask if masked else None, causal=True, implementation="cudnn"
        )
    ((arrays, options),) = calls
    assert all(a is b for a, b in zip(arrays, (query, key, value), strict=True))
    found = options.pop("mask")
    assert options == {"is_causal": True, "implementation": "cudnn"}
    if masked:  # cuDNN wants a row for each query
        assert found.shape == (2, 1, 6, 6)
        np.testing.assert_array_equal(found, jnp.broadcast_to(mask, found.shape))
    else:
        assert found is None


# Precision.


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_all_products_have_operands_of_one_dtype(dtype):
    """Autodiff would multiply the float32 gradient of the logits by bfloat16 queries and keys."""
    arrays = jnp.zeros((3, 2, 6, 2, 8), dtype)
    weight = jnp.ones((2, 6, 2, 8), jnp.float32)
    found = product_dtypes(
        lambda *arrays: value_and_gradients("einsum", arrays, None, True, weight), *arrays
    )
    # Logits and the gradient of the weights go on in float32, the rest in the compute dtype.
    wanted = {(dtype, dtype, "float32"): 2, (dtype, dtype, dtype): 4}
    assert found == ({(dtype,) * 3: 6} if dtype == "float32" else wanted)


def test_half_precision_keeps_only_half_precision_scores():
    """Of arrays as large as the scores, the backward pass gets the weights alone."""
    query, key, value = jnp.zeros((3, 2, 64, 2, 4), jnp.bfloat16)
    _, pullback = jax.vjp(lambda *a: dot_product_attention(*a, causal=True), query, key, value)
    large = [x for x in jax.tree.leaves(pullback) if x.size >= 2 * 2 * 64 * 64]
    assert [x.dtype for x in large] == [jnp.bfloat16]


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_half_precision_is_close(implementation):
    *arrays, weight = draw(2, 40, 2, 16)
    exact = value_and_gradients(implementation, arrays, None, True, weight)
    half = tuple(jnp.asarray(x, jnp.bfloat16) for x in arrays)
    found = value_and_gradients(implementation, half, None, True, weight)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        assert 0 < error < 0.01  # a rounding to bfloat16 is 0.002


@pytest.mark.parametrize("causal", [False, True])
def test_splash_compiles_for_tpus_on_a_mesh(causal):
    """The real compiler, no TPU: forward and the two backward kernels, sharded."""

    def loss(arrays):
        y = dot_product_attention(*arrays, causal=causal, implementation="splash")
        return jnp.sum(y.astype(jnp.float32))

    shape = jax.ShapeDtypeStruct((4, 197, 2, 72), jnp.bfloat16)
    text = tpu_text(jax.grad(loss), (shape,) * 3, mesh={"data": 2, "tensor": 2})
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert "bf16[2,1,256,72]" in text  # half of the batch, half of the heads, whole blocks
