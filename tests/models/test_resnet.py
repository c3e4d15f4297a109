"""CLIP's ResNet against a float64 oracle in numpy that neither folds norms nor batches heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from numpy.lib.stride_tricks import sliding_window_view

from clipjax.errors import UserError
from clipjax.models import image_section, make_model, model_section, text_section
from clipjax.models.resnet import Bottleneck, ResNet

MODEL = ResNet(size=64, layers=(2, 1, 2, 1), width=4, output_dim=6)


def oracle(params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pooled [output_dim], feature map [N, C]) of one image [H, W, 3]."""

    def conv_norm(y, p, stride=1):
        kernel = p["kernel"] if p["kernel"].ndim == 4 else p["kernel"][None, None]
        size = len(kernel)
        padded = np.pad(y, [(size // 2, size // 2)] * 2 + [(0, 0)])
        windows = sliding_window_view(padded, (size, size), axis=(0, 1))[::stride, ::stride]
        y = np.einsum("hwcij,ijcd->hwd", windows, kernel)
        return (y - p["mean"]) / np.sqrt(p["var"] + MODEL.eps) * p["scale"] + p["bias"]

    def relu(y):
        return np.maximum(y, 0)

    def halve(y):
        return (y[::2, ::2] + y[1::2, ::2] + y[::2, 1::2] + y[1::2, 1::2]) / 4

    x = relu(conv_norm(x, params["stem_1"], stride=2))
    x = relu(conv_norm(x, params["stem_2"]))
    x = halve(relu(conv_norm(x, params["stem_3"])))
    for stage, depth in enumerate(MODEL.layers):
        for block in range(depth):
            p = params[f"layer_{stage + 1}"][f"block_{block}"]
            y = relu(conv_norm(relu(conv_norm(x, p["conv_1"])), p["conv_2"]))
            if stage > 0 and block == 0:
                x, y = halve(x), halve(y)
            if block == 0:
                x = conv_norm(x, p["shortcut"])
            x = relu(x + conv_norm(y, p["conv_3"]))

    p, features = params["pool"], x.reshape(-1, x.shape[-1])
    rows = np.concatenate([features.mean(0, keepdims=True), features]) + p["position_embedding"]
    query, key, value = (rows @ p[n]["kernel"] + p[n]["bias"] for n in ("query", "key", "value"))
    heads = []
    for start in range(0, rows.shape[-1], 64):
        part = slice(start, start + 64)
        weight = np.exp(key[:, part] @ query[0, part] / 8)
        heads.append(weight @ value[:, part] / weight.sum())
    return np.concatenate(heads) @ p["out"]["kernel"] + p["out"]["bias"], features


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    rng = np.random.default_rng(0)
    draw = {
        "kernel": lambda s: rng.normal(size=s) * (2 / np.prod(s[:-1])) ** 0.5,
        "scale": lambda s: rng.uniform(0.5, 1.2, s),
        "bias": lambda s: rng.normal(size=s) * 0.3,
        "mean": lambda s: rng.normal(size=s) * 0.1,
        "var": lambda s: rng.uniform(0.5, 1.5, s),
        "position_embedding": lambda s: rng.normal(size=s),
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw[path[-1].key](leaf.shape).astype(np.float32), nn.unbox(shapes)
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def outputs(params, images):
    return jax.jit(MODEL.apply)({"params": params}, images)


def test_equals_the_oracle(params, images, outputs):
    pooled, tokens = outputs
    assert pooled.shape == (3, 6)
    assert tokens.shape == (3, 4, 128)
    exact = jax.tree.map(np.float64, params)
    for row, img in enumerate(images):
        wanted, features = oracle(exact, img.astype(np.float64))
        assert 0.2 < (features > 0).mean() < 0.9
        np.testing.assert_allclose(tokens[row], features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pooled[row], wanted, rtol=1e-4, atol=1e-5)


def test_half_precision(params, images, outputs):
    half = jax.jit(MODEL.clone(dtype="bfloat16").apply)({"params": params}, images)
    for exact, rounded in zip(outputs, half, strict=True):
        assert rounded.dtype == jnp.bfloat16
        assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


def test_only_statistics_get_no_gradient(params, images):
    def loss(p):
        return jnp.square(MODEL.apply({"params": p}, images)[0]).sum()

    for path, leaf in flatten_dict(jax.jit(jax.grad(loss))(params), sep="/").items():
        # A key's bias adds the same to all logits of a query.
        none = path.endswith(("/mean", "/var")) or path == "pool/key/bias"
        assert bool(np.abs(leaf).max() > 1e-4) is not none, path


def test_a_block_begins_as_its_shortcut():
    x = np.random.default_rng(2).normal(size=(1, 4, 4, 3)).astype(np.float32)
    block = Bottleneck(2, stride=2)
    y, variables = block.init_with_output(jax.random.key(0), x)
    kernel = nn.unbox(variables)["params"]["shortcut"]["kernel"]
    pooled = x.reshape(1, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(y, np.maximum(pooled @ kernel, 0) / (1 + 1e-5) ** 0.5, rtol=1e-5)


def test_parameters_in_half_precision():
    tower = MODEL.clone(param_dtype="bfloat16")
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(shapes))


def test_within_a_dual_encoder(params, outputs):
    image = image_section("clipjax.models.resnet:ResNet", size=64, width=4, output_dim=6)
    text = text_section(length=4, vocab_size=8, width=8, depth=1, heads=1)
    model = make_model(model_section(image, text, embed_dim=6, image_projection="none"))
    batch = {"image": jnp.zeros((2, 64, 64, 3), jnp.uint8)}
    found, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch))
    assert found["image_embedding"].shape == (2, 6)
    assert found["image_tokens"].shape == (2, 4, 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 48}, "multiple of 32 px, not 48 px"),
        ({"size": 32}, r"takes images \[32, 32, 3\], not \[64, 64, 3\]"),
        ({"layers": (1, 1, 1)}, "4 stages of at least 1 block each"),
        ({"layers": (1, 0, 1, 1)}, "4 stages of at least 1 block each"),
        ({"width": 5}, "width must be even, not 5"),
        ({"heads": 3}, "width of 128 cannot be split into 3 heads"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(MODEL.clone(**settings).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def test_size_of_rn50():
    shapes = jax.eval_shape(ResNet().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    flat = flatten_dict(nn.unbox(shapes["params"]), sep="/")
    statistics = sum(leaf.size for path, leaf in flat.items() if path.endswith(("mean", "var")))
    assert sum(leaf.size for leaf in flat.values()) - statistics == 38_316_896
    assert flat["pool/position_embedding"].shape == (50, 2048)
