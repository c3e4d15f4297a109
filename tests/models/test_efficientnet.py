"""EfficientNet-Lite against a float64 oracle in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from clipjax.models.efficientnet import ConvNorm, EfficientNetLite0, Stage, depthwise_conv

STAGES = (Stage(1, 3, 1, 1, 5), Stage(2, 5, 2, 2, 6), Stage(1, 3, 2, 2, 6))
MODEL = EfficientNetLite0(stages=STAGES, stem_width=4, head_width=9)


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """[B, H', W', C, K, K] windows of [B, H, W, C] under TensorFlow's "SAME" padding."""
    pads = [(0, 0)]
    for n in x.shape[1:3]:
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, [*pads, (0, 0)])
    return sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def oracle(params, x: np.ndarray) -> np.ndarray:
    def norm(y, p, relu6=True):
        y = (y - p["mean"]) / np.sqrt(p["var"] + 1e-3) * p["scale"] + p["bias"]
        return np.clip(y, 0, 6) if relu6 else y

    stem = params["stem"]
    x = norm(np.einsum("bhwcij,ijcd->bhwd", windows(x, 3, 2), stem["kernel"]), stem)
    index = 0
    for stage in STAGES:
        for repeat in range(stage.repeat):
            p, stride = params[f"block_{index}"], stage.stride if repeat == 0 else 1
            y = norm(x @ p["expand"]["kernel"], p["expand"]) if stage.expand > 1 else x
            kernel = p["depthwise"]["kernel"]
            y = np.einsum("bhwcij,ijc->bhwc", windows(y, stage.kernel, stride), kernel)
            y = norm(y, p["depthwise"])
            y = norm(y @ p["project"]["kernel"], p["project"], relu6=False)
            x = x + y if x.shape == y.shape else y
            index += 1
    x = norm(x @ params["head"]["kernel"], params["head"])
    return x.reshape(x.shape[0], -1, x.shape[-1])


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    rng = np.random.default_rng(0)
    draw = {
        "kernel": lambda s: rng.normal(size=s) * (2 / np.prod(s[:-1])) ** 0.5,
        "scale": lambda s: rng.uniform(0.5, 1.5, s),
        "bias": lambda s: rng.uniform(-0.5, 1.0, s),
        "mean": lambda s: rng.normal(size=s) * 0.1,
        "var": lambda s: rng.uniform(0.3, 1.5, s),
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw[path[-1].key](leaf.shape).astype(np.float32), shapes
    )


@pytest.mark.parametrize("size", [(16, 16), (13, 22)])
def test_equals_the_oracle(params, size):
    x = np.random.default_rng(1).normal(size=(4, *size, 3)).astype(np.float32)
    wanted = oracle(jax.tree.map(np.float64, params), x.astype(np.float64))
    assert (wanted > 0).mean() > 0.2
    pooled, tokens = jax.jit(MODEL.apply)({"params": params}, x)
    assert tokens.shape == (4, -(-size[0] // 8) * -(-size[1] // 8), 9)
    np.testing.assert_allclose(tokens, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pooled, wanted.mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_change_nothing(params, chunk):
    x = np.random.default_rng(2).normal(size=(6, 16, 16, 3)).astype(np.float32)
    whole = jax.jit(MODEL.apply)({"params": params}, x)
    parts = jax.jit(MODEL.clone(chunk=chunk).apply)({"params": params}, x)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_equals_the_grouped_convolution(size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 12, 7)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 7)).astype(np.float32)
    wanted = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=7,
    )
    np.testing.assert_allclose(depthwise_conv(x, kernel, stride), wanted, rtol=1e-5, atol=1e-5)


def test_statistics_get_no_gradient(params):
    x = np.random.default_rng(3).normal(size=(2, 8, 8, 3)).astype(np.float32)
    stem = ConvNorm(4, 3, 2)
    loss = jax.jit(jax.grad(lambda p: stem.apply({"params": p}, x).sum()))
    for name, leaf in loss(params["stem"]).items():
        assert bool(np.any(leaf)) is (name not in ("mean", "var")), name


def test_half_precision_outputs_float32(params):
    x = np.random.default_rng(4).normal(size=(2, 16, 16, 3)).astype(np.float32)
    exact = jax.jit(MODEL.apply)({"params": params}, x)[0]
    half = jax.jit(MODEL.clone(dtype=jnp.bfloat16).apply)({"params": params}, x)[0]
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


def test_size_of_lite0():
    shapes = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 3_413_024
