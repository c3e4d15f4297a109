"""The text transformer against a float64 oracle, option by option."""

import jax
import numpy as np
import pytest
import transformer_oracle as oracle

from clipjax.errors import UserError
from clipjax.models.text import TextTransformer

END = 9
TEXT = TextTransformer(length=6, vocab_size=11, width=8, depth=2, heads=2, end_token=END)
# The end token may stand again as padding, and a larger id is not the end.
IDS = np.array([[1, 10, END, 0, 0, 0], [2, END, 3, END, END, 1]], np.int32)
MASK = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 1]], bool)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # as OpenAI's CLIP
        {"attention": "full", "pool": "last", "activation": "gelu_tanh", "eps": 1e-3},  # SigLIP
        {"attention": "full", "pool": "map", "qk_norm": True},
        {"pool": "map", "layer_scale": 0.1, "mlp_ratio": 2.5, "depth": 1},
        {"pool": "last", "end_token": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_oracle(settings, masked):
    module = TEXT.clone(**settings)
    params = oracle.random_params(module, IDS)
    mask = MASK if masked else None
    pooled, tokens = jax.jit(module.apply)({"params": params}, IDS, mask=mask)
    wanted = oracle.text(oracle.float64(params), IDS, module, mask)
    np.testing.assert_allclose(pooled, wanted[0], rtol=5e-5, atol=5e-5)
    np.testing.assert_allclose(tokens, wanted[1], rtol=5e-5, atol=5e-5)


@pytest.fixture(scope="module")
def params():
    return oracle.random_params(TEXT, IDS)


def encode(params, ids, mask=None, **settings):
    return jax.jit(TEXT.clone(**settings).apply)({"params": params}, ids, mask=mask)


def test_later_tokens_cannot_change_earlier_outputs(params):
    changed = IDS.copy()
    changed[:, 3:] = 7
    before, after = encode(params, IDS)[1], encode(params, changed)[1]
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(np.asarray(before - after)[:, 3:]).max() > 1e-3
    full = [encode(params, ids, attention="full")[1] for ids in (IDS, changed)]
    assert np.abs(np.asarray(full[0] - full[1])[:, :3]).max() > 1e-3


def test_end_pooling_takes_the_first_end_token(params):
    pooled, tokens = encode(params, IDS)
    np.testing.assert_array_equal(pooled[0], tokens[0, 2])
    np.testing.assert_array_equal(pooled[1], tokens[1, 1])


def test_last_pooling_takes_padding_too(params):
    pooled, tokens = encode(params, IDS, pool="last")
    np.testing.assert_array_equal(pooled, tokens[:, -1])


def test_masked_tokens_are_not_seen(params):
    changed = np.where(MASK, IDS, 5)
    for attention in ("full", "causal"):
        before, after = (encode(params, x, MASK, attention=attention)[1] for x in (IDS, changed))
        np.testing.assert_allclose(before[MASK], after[MASK], atol=1e-6)


def test_shorter_texts_use_the_first_positions(params):
    short = encode(params, IDS[:, :4])[1]
    np.testing.assert_allclose(short, encode(params, IDS)[1][:, :4], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 5}, "at most 5 tokens, not 6"),
        ({"attention": "casual"}, "did you mean 'causal'"),
        ({"pool": "eos"}, "pool cannot be 'eos'"),
        ({"heads": 3}, "cannot be split into 3 heads"),
    ],
    ids=str,
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(TEXT.clone(**settings).init, jax.random.key(0), IDS)
