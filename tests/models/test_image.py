"""The vision transformer against a float64 oracle, option by option."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformer_oracle as oracle

from clipjax.errors import UserError
from clipjax.models.image import ViT, sincos_2d
from clipjax.models.patches import kept_patches

VIT = ViT(size=16, patch=4, width=8, depth=2, heads=2)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
SEEDS = np.array([5, 9], np.uint32)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # as OpenAI's CLIP
        {"pool": "map", "pre_norm": False, "patch_bias": True, "activation": "gelu_tanh"},  # SigLIP
        {"pool": "average", "positions": "sincos_2d", "final_norm": "pooled", "mlp_ratio": 2.5},
        {"registers": 3, "qk_norm": True, "layer_scale": 0.1, "eps": 1e-2, "depth": 1},
        {"registers": 1, "pool": "map", "positions": "sincos_2d", "final_norm": "pooled"},
        {"positions": "sincos_2d", "activation": "quick_gelu"},
        {"stem": "conv", "pool": "average", "width": 16},
        {"size": 18},  # two columns and rows of pixels fill no patch
    ],
    ids=str,
)
def test_equals_the_oracle(settings):
    module = VIT.clone(**settings)
    side = module.size
    images = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    params = oracle.random_params(module, images)
    pooled, tokens = jax.jit(module.apply)({"params": params}, images)
    wanted = oracle.vit(oracle.float64(params), images.astype(np.float64), module)
    # Neither the class token nor the registers are among the tokens.
    assert tokens.shape == (2, (side // module.patch) ** 2, module.width)
    np.testing.assert_allclose(pooled, wanted[0], rtol=5e-5, atol=5e-5)
    np.testing.assert_allclose(tokens, wanted[1], rtol=5e-5, atol=5e-5)


def test_sincos_positions():
    table = sincos_2d(3, 5, 16)
    assert table.dtype == np.float32
    assert table.shape == (15, 16)
    for row in range(3):
        for column in range(5):
            wanted = oracle.sincos(row, column, 16)
            np.testing.assert_allclose(table[5 * row + column], wanted, atol=1e-6)
    assert len({tuple(line) for line in table.round(5)}) == 15
    with pytest.raises(UserError, match="that 4 divides, not 18"):
        sincos_2d(2, 2, 18)


def test_sincos_positions_are_no_parameters():
    params = oracle.random_params(VIT.clone(positions="sincos_2d"), IMAGES)
    assert "position_embedding" not in params


def drop_patches(x_BxNxW, rate, seeds):
    return jnp.take_along_axis(x_BxNxW, kept_patches(x_BxNxW.shape[1], rate, seeds)[:, :, None], 1)


@pytest.mark.parametrize(
    ("rate", "tokens", "kept"),
    [(0.5, 16, 8), (0.7, 10, 3), (0.57, 100, 43), (0.3, 196, 138), (0.99, 4, 1)],
)
def test_patch_dropout_keeps_the_right_number(rate, tokens, kept):
    assert kept == max(1, math.ceil(round((1 - rate) * tokens, 6)))
    x = jax.ShapeDtypeStruct((2, tokens, 3), jnp.float32)
    seeds = jax.ShapeDtypeStruct((2,), jnp.uint32)
    found = jax.eval_shape(lambda x, s: drop_patches(x, rate, s), x, seeds)
    assert found.shape == (2, kept, 3)


def test_patch_dropout_depends_on_the_sample_seed_alone():
    x = np.random.default_rng(0).normal(size=(1, 16, 3)).astype(np.float32).repeat(4, 0)
    drop = jax.jit(lambda x, seeds: drop_patches(x, 0.5, seeds))
    found = np.asarray(drop(x, np.array([1, 2, 1, 3], np.uint32)))
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])
    moved = np.asarray(drop(x, np.array([3, 7, 2, 1], np.uint32)))
    np.testing.assert_array_equal(moved[[3, 2, 0]], found[[0, 1, 3]])
    # What is kept stands in its old order.
    rows = [[np.flatnonzero((x[0] == row).all(1)).item() for row in sample] for sample in found]
    assert all(row == sorted(set(row)) for row in rows)


def test_patch_dropout_keeps_every_patch_equally_often():
    seeds = np.arange(400, dtype=np.uint32)
    x = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None], (400, 8, 1))
    kept = jax.jit(lambda x, s: drop_patches(x, 0.75, s))(x, seeds)
    counts = np.bincount(np.asarray(kept).astype(int).ravel(), minlength=8)
    assert counts.sum() == 800
    assert counts.min() > 65
    assert counts.max() < 135


def test_patch_dropout_is_for_training_only():
    module = VIT.clone(patch_dropout=0.5, depth=1)
    params = oracle.random_params(module, IMAGES)
    apply = jax.jit(module.apply)
    plain = jax.jit(VIT.clone(depth=1).apply)({"params": params}, IMAGES)
    np.testing.assert_array_equal(apply({"params": params}, IMAGES)[0], plain[0])
    pooled, tokens = apply({"params": params}, IMAGES, sample_seed=SEEDS)
    assert tokens.shape == (2, 8, 8)
    assert not np.allclose(pooled, plain[0])
    again, _ = apply({"params": params}, IMAGES, sample_seed=SEEDS)
    np.testing.assert_array_equal(pooled, again)


def test_dropped_patches_keep_their_positions():
    """The kept patches, with their own positions, are what the rest of the tower sees."""
    module = VIT.clone(patch_dropout=0.5, depth=1, pool="average", pre_norm=False)
    params = oracle.random_params(module, IMAGES)
    block = params["transformer"]["blocks"]
    for last in (block["attention"]["out"], block["mlp"]["fc_out"]):
        last.update(jax.tree.map(np.zeros_like, last))  # the block passes its input on
    _, every = module.apply({"params": params}, IMAGES)
    _, some = module.apply({"params": params}, IMAGES, sample_seed=SEEDS)
    wanted = drop_patches(every, 0.5, jnp.asarray(SEEDS))
    np.testing.assert_allclose(some, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "cls"}, "pool cannot be 'cls'"),
        ({"positions": "sincos"}, "did you mean 'sincos_2d'"),
        ({"stem": "conv", "patch": 6}, "cannot be cut into patches of 6"),
        ({"stem": "conv", "patch": 6, "size": 18}, "no power of 2"),
        ({"patch": 32}, "cannot be cut"),
        ({"patch_dropout": 1.0}, "below 1"),
        ({"depth": 0}, "at least 1 layer, not 0"),
        ({"heads": 0}, "at least 1 head, not 0"),
        ({"size": 32}, r"takes pictures \[32, 32, 3\], not \[16, 16, 3\]"),
    ],
    ids=str,
)
def test_refusals(settings, message):
    images = IMAGES
    if settings.get("size") == 18:
        images = np.zeros((1, 18, 18, 3), np.float32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(VIT.clone(**settings).init, jax.random.key(0), images)
