"""Dropout and drop path: their rates, and that they come from the samples' seeds alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.models.heads import text_features
from clipjax.models.image import ViT
from clipjax.models.noise import drop_path, dropout
from clipjax.models.text import TextTransformer
from tests.models import transformer_oracle as oracle

SEEDS = np.arange(8, dtype=np.uint32) * 7919
TEXT = TextTransformer(length=4, vocab_size=11, width=8, depth=3, heads=2, end_token=9)
IDS = np.tile(np.array([[1, 3, 9, 0]], np.int32), (8, 1))


@pytest.fixture(scope="module")
def params():
    return oracle.random_params(TEXT, IDS)


def encode(params, seeds=SEEDS, ids=IDS, **settings):
    module = TEXT.clone(**settings)
    run = lambda p, i, s: module.apply({"params": p}, i, sample_seed=s)[0]  # noqa: E731
    return np.asarray(jax.jit(run)(params, ids, seeds))


def test_rates():
    x = jnp.ones((8, 50, 40))
    y = np.asarray(jax.jit(lambda x: dropout(x, 0.25, SEEDS, 3))(x))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    many = np.arange(2000, dtype=np.uint32)
    y = np.asarray(jax.jit(lambda x: drop_path(x, 0.5, many, 1, 2))(jnp.ones((2000, 2, 3))))
    assert (y == y[:, :1, :1]).all()  # a whole branch
    assert abs((y[:, 0, 0] == 0).mean() - 0.5) < 0.05
    assert y.max() == 2.0
    assert (drop_path(x, 0.5, SEEDS, 1, 1) != drop_path(x, 0.5, SEEDS, 1, 2)).any()


@pytest.mark.parametrize("settings", [{"dropout": 0.3}, {"drop_path": 0.6}], ids=str)
def test_noise_is_a_sample_s_own(params, settings):
    """The same in any batch; another for another seed; none without one."""
    plain = encode(params, None)
    noisy = encode(params, **settings)
    assert np.abs(noisy - plain).max() > 1e-2
    assert len(np.unique(noisy.round(4), axis=0)) > 2
    np.testing.assert_array_equal(encode(params, None, **settings), plain)
    halves = [encode(params, SEEDS[half], IDS[:4], **settings) for half in (slice(4), slice(4, 8))]
    np.testing.assert_allclose(np.concatenate(halves), noisy, rtol=1e-5, atol=1e-5)
    again = encode(params, remat="full", unroll=0, **settings)
    np.testing.assert_allclose(again, noisy, rtol=1e-5, atol=1e-5)


def test_the_first_block_is_never_dropped(params):
    one = jax.tree.map(lambda x: x, params)
    one["transformer"] = jax.tree.map(lambda x: x[:1], params["transformer"])
    np.testing.assert_array_equal(encode(one, depth=1, drop_path=0.9), encode(one, None, depth=1))


def test_texts_of_an_image_have_seeds_of_their_own(params):
    module = TEXT.clone(dropout=0.3)
    texts = np.stack([IDS] * 2, axis=1)

    def run(params, texts):
        bound = module.bind({"params": params})
        return text_features(bound, {"text": texts}, SEEDS)

    pooled, tokens = jax.jit(run)(params, texts)
    assert (pooled.shape, tokens.shape) == ((8, 2, 8), (8, 2, 4, 8))
    assert np.abs(pooled[:, 0] - pooled[:, 1]).max() > 1e-3
    np.testing.assert_allclose(pooled[:, 0], encode(params, dropout=0.3), rtol=1e-5, atol=1e-5)


def test_towers_do_not_drop_alike():
    """Two towers of one kind in a model: by their place."""
    import flax.linen as nn

    class Two(nn.Module):
        one: nn.Module
        other: nn.Module

        def __call__(self, ids, seeds):
            return self.one(ids, sample_seed=seeds)[0], self.other(ids, sample_seed=seeds)[0]

    tower = TEXT.clone(dropout=0.5)
    params = oracle.random_params(tower, IDS)
    one, other = jax.jit(Two(tower, tower.clone()).apply)(
        {"params": {"one": params, "other": params}}, IDS, SEEDS
    )
    assert np.abs(one - other).max() > 1e-2


def test_an_image_tower_drops_as_well():
    tower = ViT(size=8, patch=4, width=8, depth=2, heads=2, drop_path=0.5)
    image = np.ones((8, 8, 8, 3), np.float32)
    params = oracle.random_params(tower, image)
    run = jax.jit(lambda s: tower.apply({"params": params}, image, sample_seed=s)[0])
    assert len(np.unique(np.asarray(run(SEEDS)).round(4), axis=0)) > 1
    for settings in ({"dropout": 1.0}, {"drop_path": -0.1}):
        with pytest.raises(UserError, match="must be at least 0 and below 1"):
            jax.eval_shape(tower.clone(**settings).init, jax.random.key(0), image)
