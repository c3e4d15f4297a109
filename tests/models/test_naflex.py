"""Images in their own shape: positions against torch and a float64 oracle, towers against each image alone."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.image import ViT
from clipjax.models.naflex import resampling_weights, resized_positions
from clipjax.models.text import TextTransformer
from tests.models import transformer_oracle as oracle
from tests.models.derivatives import assert_gradients

TORCH = json.loads((Path(__file__).parent / "naflex_torch.json").read_text())["grids"]
VIT = ViT(
    size=16, patch=4, width=8, depth=2, heads=2, positions="naflex", pool="map", pre_norm=False
)
RNG = np.random.default_rng(0)
SHAPES = np.array([[2, 3], [4, 4], [1, 5], [6, 1]], np.int32)
TOKENS = 17


def as_int32(*numbers):
    return jnp.array(numbers, jnp.int32)


@pytest.mark.parametrize("grid", TORCH)
def test_positions_are_those_of_torch(grid):
    """The two grids of naflex_torch.json, resized."""
    rows, columns = map(int, grid.split("x"))
    i, j = np.mgrid[:4, :4].astype(np.float32)
    table = np.stack([i * j + i, j * j - 2 * i], axis=-1)
    found = resized_positions(table, as_int32([rows, columns]), rows * columns)[0]
    np.testing.assert_allclose(found.T, TORCH[grid], atol=2e-5)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_weights_equal_the_oracle(size):
    lengths = np.array([1, 2, 3, 7, 16, 37, 256], np.int32)
    place = jnp.broadcast_to(jnp.arange(256), (len(lengths), 256))
    found = resampling_weights(place, jnp.asarray(lengths), size)
    for weights, length in zip(found, lengths, strict=True):
        wanted = oracle.resampled(np.eye(size), length)
        np.testing.assert_allclose(weights[:length], wanted, atol=2e-6)
        np.testing.assert_allclose(weights[:length].sum(1), 1, atol=1e-6)
    assert bool(jnp.isfinite(found).all())  # where there is only padding, too


def test_a_grid_of_its_own_size_stays_as_it_is():
    table = RNG.normal(size=(16, 16, 3)).astype(np.float32)
    found = resized_positions(table, as_int32([16, 16]), 256)[0]
    np.testing.assert_allclose(found, table.reshape(256, 3), atol=1e-6)


def test_each_image_has_its_own_grid():
    table = RNG.normal(size=(4, 4, 3)).astype(np.float32)
    found = jax.jit(lambda s: resized_positions(table, s, TOKENS))(SHAPES)
    for positions, (rows, columns) in zip(found, SHAPES, strict=True):
        wanted = oracle.resampled_grid(table.astype(np.float64), rows, columns)
        np.testing.assert_allclose(positions[: rows * columns], wanted, atol=1e-6)


def imgs(dtype=np.float32):
    """One of each shape."""
    draw = {np.float32: RNG.normal, np.uint8: lambda size: RNG.integers(0, 256, size)}[dtype]
    return [draw(size=(4 * r, 4 * c, 3)).astype(dtype) for r, c in SHAPES]


def flattened(images, padding=9):
    """[B, TOKENS, 48]: patches in reading order; the order within one is row, column, channel."""
    batch = np.full((len(images), TOKENS, 48), padding, images[0].dtype)
    for out, image in zip(batch, images, strict=True):
        rows, columns = image.shape[0] // 4, image.shape[1] // 4
        for n in range(rows * columns):
            r, c = 4 * (n // columns), 4 * (n % columns)
            out[n] = image[r : r + 4, c : c + 4].reshape(-1)
    return batch


@pytest.mark.parametrize(
    "settings",
    [
        {"patch_bias": True, "activation": "gelu_tanh", "eps": 1e-6},  # SigLIP 2
        {"pool": "average", "final_norm": "pooled"},
        {"pool": "class", "registers": 2, "pre_norm": True},
        {"pool": "attention", "class_token": True, "pool_queries": 3, "registers": 1},
        {"pool": "map", "class_token": True},
    ],
    ids=str,
)
def test_every_image_of_a_batch_is_as_it_is_alone(settings):
    module = VIT.clone(**settings)
    images = imgs()
    params = oracle.random_params(module, flattened(images), image_shape=SHAPES)
    assert params["position_embedding"].shape == (4, 4, 8)
    apply = jax.jit(module.apply)
    pooled, tokens = apply({"params": params}, flattened(images), image_shape=SHAPES)
    for b, image in enumerate(images):
        wanted = oracle.vit(oracle.float64(params), image[None].astype(np.float64), module)
        count = wanted[1].shape[1]
        np.testing.assert_allclose(pooled[b], wanted[0][0], rtol=5e-5, atol=5e-5)
        np.testing.assert_allclose(tokens[b, :count], wanted[1][0], rtol=5e-5, atol=5e-5)
        # As a whole image, its shape is known.
        whole, _ = apply({"params": params}, image[None])
        np.testing.assert_allclose(whole[0], wanted[0][0], rtol=5e-5, atol=5e-5)
    other, _ = apply({"params": params}, flattened(images, padding=-5), image_shape=SHAPES)
    np.testing.assert_array_equal(pooled, other)  # padding is not seen


def test_gradients():
    module = VIT.clone(depth=1)
    images = imgs()
    patches = flattened(images)
    params = oracle.random_params(module, patches, image_shape=SHAPES)
    weight = RNG.normal(size=(len(images), 8)).astype(np.float32)

    def loss(params):
        pooled, _ = module.apply({"params": params}, patches, image_shape=SHAPES)
        return jnp.sum(weight * pooled)

    def exact(params):
        pooled = [oracle.vit(params, i[None].astype(np.float64), module)[0][0] for i in images]
        return np.sum(weight * pooled)

    assert_gradients(loss, exact, params)


@pytest.fixture(scope="module")
def model():
    text = TextTransformer(length=5, vocab_size=11, width=8, depth=1, heads=2, end_token=10)
    statistics = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return DualEncoder(VIT.clone(depth=1), text, embed_dim=6, **statistics)


def test_bytes_are_normalised_in_either_form(model):
    images = imgs(np.uint8)
    batch = {"image": flattened(images), "image_shape": SHAPES}
    params = oracle.random_params(model, batch | {"text": np.ones((4, 5), np.int32)})
    apply = jax.jit(model.apply)
    together = apply({"params": params}, batch)["image_embedding"]
    for found, image in zip(together[:2], images[:2], strict=True):
        alone = apply({"params": params}, {"image": image[None]})["image_embedding"][0]
        np.testing.assert_allclose(found, alone, atol=1e-5)
        pixels = (image / np.float32(255) - np.float32(model.mean)) / np.float32(model.std)
        exact = apply({"params": params}, {"image": pixels[None]})["image_embedding"][0]
        np.testing.assert_allclose(alone, exact, atol=1e-5)


def test_patch_dropout_of_whole_images():
    module = VIT.clone(patch_dropout=0.5)
    image = imgs()[1][None]
    params = oracle.random_params(module, image)
    _, tokens = module.apply({"params": params}, image, sample_seed=np.array([3], np.uint32))
    assert tokens.shape == (1, 8, 8)


PATCHES = np.zeros((2, 5, 48), np.float32)
SHAPE = np.array([[1, 5], [2, 2]], np.int32)
SEED = np.zeros(2, np.uint32)


@pytest.mark.parametrize(
    ("settings", "image", "shape", "message"),
    [
        ({}, PATCHES, None, r"need image_shape \[2, 2\].*there is none"),
        ({}, PATCHES, SHAPE[:1], r"there is \[1, 2\]"),
        ({}, PATCHES[..., :3], SHAPE, r"takes flattened patches \[N, 48\], not \[5, 3\]"),
        ({}, np.zeros((1, 8, 8, 3)), SHAPE[:1], "whole images have their own shape"),
        ({}, np.zeros((1, 8, 6, 3)), None, r"whose sides 4 divides, not \[8, 6, 3\]"),
        ({"positions": "learned"}, PATCHES, SHAPE, "only an image tower with positions='naflex'"),
        ({"positions": "learned"}, PATCHES, None, r"takes images \[16, 16, 3\], not \[5, 48\]"),
        ({"stem": "conv"}, PATCHES, SHAPE, "stem='patch' and rope=None"),
        ({"rope": "eva"}, PATCHES, SHAPE, "stem='patch' and rope=None"),
        ({"patch_dropout": 0.5}, PATCHES, SHAPE, "whole images, not flattened"),
    ],
    ids=str,
)
def test_refusals(settings, image, shape, message):
    apply = VIT.clone(**settings).init
    with pytest.raises(UserError, match=message):
        jax.eval_shape(apply, jax.random.key(0), image, image_shape=shape, sample_seed=SEED)
