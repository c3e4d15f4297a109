"""The text transformer against a float64 oracle, option by option."""

import jax
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.models.text import TextTransformer
from tests.models import transformer_oracle as oracle

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
        {"pool": "first", "attention": "full"},
        {"final_norm": "pooled"},
        {"final_norm": "pooled", "pool": "map"},
        {"class_token": True, "pool": "class", "final_norm": "pooled"},  # CoCa
        {"class_token": True, "pool": "class", "class_mask": "aligned", "attention": "full"},
        {"class_token": True, "pool": "last", "pad_id": 3},
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


CLASS = dict(class_token=True, pool="class")


@pytest.fixture(scope="module")
def class_params():
    params = oracle.random_params(TEXT.clone(**CLASS), IDS)
    assert params["class_token"].shape == (1, 8)
    assert params["position_embedding"].shape == (7, 8)
    return params


@pytest.mark.parametrize("mask", ["aligned", "shifted"])
def test_the_class_token_sees_no_padding(class_params, mask):
    """But, as CoCa's weights were trained, the first padding token, where the mask is shifted."""
    ids = np.array([[1, END, 0, 0, 0, 0]], np.int32)
    settings = CLASS | dict(class_mask=mask)
    pooled, tokens = encode(class_params, ids, **settings)
    assert tokens.shape == (1, 6, 8)
    rows = class_params["token_embedding"].copy()
    rows[0] = rows[5]  # what padding looks like
    changed, _ = encode(class_params | {"token_embedding": rows}, ids, **settings)
    assert np.allclose(pooled, changed, atol=1e-6) == (mask == "aligned")
    # Without the second padding token, and all that follow, nothing changes either way.
    seen = np.array([[1, 1, 1, 0, 0, 0]], bool)
    np.testing.assert_allclose(pooled, encode(class_params, ids, seen, **settings)[0], atol=1e-6)


def test_the_class_token_does_not_change_the_tokens(class_params):
    """It stands behind them, and causal attention does not look back from the front."""
    full = np.array([[1, 2, 3, 4, 5, END]], np.int32)
    plain = {k: v for k, v in class_params.items() if k != "class_token"}
    plain["position_embedding"] = class_params["position_embedding"][:6]
    tokens = encode(plain, full)[1]
    np.testing.assert_allclose(encode(class_params, full, **CLASS)[1], tokens, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 5}, "at most 5 tokens, not 6"),
        ({"attention": "casual"}, "did you mean 'causal'"),
        ({"pool": "eos"}, "pool cannot be 'eos'"),
        ({"heads": 3}, "cannot be split into 3 heads"),
        ({"pool": "class"}, "needs class_token=True"),
        ({"class_mask": "shift"}, "did you mean 'shifted'"),
        ({"final_norm": "token"}, "did you mean 'tokens'"),
    ],
    ids=str,
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(TEXT.clone(**settings).init, jax.random.key(0), IDS)
