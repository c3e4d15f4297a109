"""The vision transformer against a float64 oracle, option by option."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax import rules
from clipjax.errors import UserError
from clipjax.models.image import ViT, sincos_2d
from clipjax.models.patches import kept_patches
from tests.models import transformer_oracle as oracle
from tests.models.derivatives import assert_gradients

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
        {  # EVA-02
            **dict(mlp="swiglu", mlp_norm=True, attention_norm=True, key_bias=False, width=16),
            **dict(rope="eva", rope_grid=3, patch_bias=True, pre_norm=False, mlp_ratio=8 / 3),
        },
        {"norm_order": "post", "key_bias": False, "pre_norm": False},  # EVA-02-E
        {"rope": "mlcd", "positions": "none", "final_norm": "pooled", "width": 16},  # MLCD
        {  # Perception Encoder
            **dict(rope="pe", rope_grid=6, width=16, pool="map", class_token=True),
            **dict(pool_heads=4, pool_mlp_ratio=2.0),
        },
        {"rope": "pe", "width": 16, "pool": "map", "registers": 1},
        {"rope": "mlcd", "registers": 2, "width": 16},
        {"registers": 4, "class_position": False, "layer_scale": 1e-2},  # DINOv2 with registers
        {"positions": "sincos_2d", "class_position": False},
        {"pool": "average", "class_token": True, "final_norm": "pooled"},  # CLIPA
        {"pool": "attention", "class_token": True, "pool_queries": 5, "pool_heads": 4},  # CoCa
        {
            **dict(pool="attention", pool_queries=3, pool_width=12, registers=1),
            **dict(final_norm="pooled", positions="none"),
        },
        {"qkv_bias": False, "positions": "none"},
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
    wanted_shape = (2, (side // module.patch) ** 2, module.width)
    if module.pool == "attention":
        wanted_shape = (2, module.pool_queries - 1, module.pool_width or module.width)
    assert tokens.shape == wanted_shape
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


def test_names_and_shapes():
    def shapes(**settings):
        return {
            path: leaf.shape
            for path, leaf in rules.paths(
                oracle.random_params(VIT.clone(**settings), IMAGES)
            ).items()
        }

    plain = shapes()
    assert plain["position_embedding"] == (17, 8)
    assert shapes(class_position=False)["position_embedding"] == (16, 8)
    assert "position_embedding" not in shapes(positions="none")
    assert shapes(rope="eva", heads=1).keys() == plain.keys()
    assert shapes(rope="mlcd", heads=1)["rope_class"] == (1, 4)
    assert "rope_class" not in shapes(rope="mlcd", heads=1, pool="average")
    assert shapes(pool="average", class_token=True) == plain
    pooled = shapes(pool="attention", pool_queries=3, pool_width=12)
    assert {p: s for p, s in pooled.items() if p.startswith(("pool/", "norm_post"))} == {
        "pool/query": (3, 12),
        "pool/norm_query/scale": (12,),
        "pool/norm_query/bias": (12,),
        "pool/norm_key/scale": (8,),
        "pool/norm_key/bias": (8,),
        "pool/to_query/kernel": (12, 12),
        "pool/to_query/bias": (12,),
        "pool/to_key/kernel": (8, 12),
        "pool/to_key/bias": (12,),
        "pool/to_value/kernel": (8, 12),
        "pool/to_value/bias": (12,),
        "pool/out/kernel": (12, 12),
        "pool/out/bias": (12,),
        "norm_post/scale": (12,),
        "norm_post/bias": (12,),
    }


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


@pytest.mark.parametrize("rope", ["eva", "mlcd"])
def test_dropped_patches_keep_their_rotation(rope):
    """Leaving patches out is the same as hiding them from everyone, wherever they stand."""
    module = VIT.clone(patch_dropout=0.5, depth=1, width=16, rope=rope, positions="none")
    params = oracle.random_params(module, IMAGES)
    pooled, _ = jax.jit(module.apply)({"params": params}, IMAGES, sample_seed=SEEDS)
    exact = oracle.float64(params)
    kept = np.asarray(kept_patches(16, 0.5, jnp.asarray(SEEDS)))
    for b, image in enumerate(IMAGES.astype(np.float64)):
        x = oracle.patches(image, exact["stem"], 4)
        x = np.concatenate([exact["class_token"], x])
        x = oracle.layer_norm(x, exact["norm_pre"], module.eps)
        seen = np.isin(np.arange(17), [0, *(kept[b] + 1)])
        rotation = oracle.rope_angles(module, exact, True)
        x = oracle.transformer(x, exact["transformer"], module, np.tile(seen, (17, 1)), rotation)
        wanted = oracle.layer_norm(x, exact["norm_post"], module.eps)[0]
        np.testing.assert_allclose(pooled[b], wanted, rtol=5e-5, atol=5e-5)


def test_learned_rotation_of_the_class_token_trains():
    module = VIT.clone(depth=1, width=16, rope="mlcd", positions="none")
    params = oracle.random_params(module, IMAGES)
    weight = np.random.default_rng(2).normal(size=(2, 16)).astype(np.float32)
    loss = lambda p: jnp.sum(weight * module.apply({"params": p}, IMAGES)[0])  # noqa: E731
    exact = lambda p: np.sum(weight * oracle.vit(p, IMAGES.astype(np.float64), module)[0])  # noqa: E731
    gradient = assert_gradients(loss, exact, params)
    assert np.abs(gradient["rope_class"]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "cls"}, "pool cannot be 'cls'"),
        ({"positions": "sincos"}, "did you mean 'sincos_2d'"),
        ({"stem": "conv", "patch": 6}, "cannot be cut into patches of 6"),
        ({"stem": "conv", "patch": 6, "size": 18}, "no power of 2"),
        ({"patch": 32}, "cannot be cut"),
        ({"patch_dropout": 1.0}, "below 1"),
        ({"rope": "ewa"}, "rope cannot be 'ewa' .did you mean 'eva'"),
        ({"rope": "eva", "heads": 4}, "that 4 divides, not 2"),
        ({"class_token": False}, "pool='class' needs a class token"),
        ({"pool": "attention", "pool_queries": 0}, "pool_queries must be at least 1"),
        ({"pool": "attention", "pool_width": 7}, "7 cannot be split into 2 heads"),
        ({"mlp": "swiglue"}, "did you mean 'swiglu'"),
        ({"depth": 0}, "at least 1 layer, not 0"),
        ({"heads": 0}, "at least 1 head, not 0"),
        ({"size": 32}, r"takes images \[32, 32, 3\], not \[16, 16, 3\]"),
    ],
    ids=str,
)
def test_refusals(settings, message):
    images = IMAGES
    if settings.get("size") == 18:
        images = np.zeros((1, 18, 18, 3), np.float32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(VIT.clone(**settings).init, jax.random.key(0), images)
