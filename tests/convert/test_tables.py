"""Key tables: nothing is lost in either direction, and whatever does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from clipjax.convert import efficientnet_lite, minilm, tables
from clipjax.convert.tables import KeyTable, Row
from clipjax.errors import UserError
from clipjax.models.bert import Bert
from clipjax.models.efficientnet import EfficientNetLite0, Stage

TOWERS = {
    "efficientnet": (
        efficientnet_lite.TABLE,
        EfficientNetLite0(
            stages=(Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 6, 8)), stem_width=6, head_width=10
        ),
        jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32),
    ),
    "bert": (
        minilm.TABLE,
        Bert(vocab_size=11, width=8, depth=12, heads=2, mlp_dim=12, max_positions=5),
        jax.ShapeDtypeStruct((1, 4), jnp.int32),
    ),
}


@pytest.fixture(params=TOWERS)
def tower(request):
    """(table, expected shapes, random parameters) of a small tower."""
    table, model, example = TOWERS[request.param]
    expected = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), example)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), expected)
    return table, expected, params


def same(a, b) -> None:
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_round_trip(tower):
    table, expected, params = tower
    tensors = table.from_params(params)
    assert len(tensors) == len(flatten_dict(params))
    for key in tensors:
        path, row = table.target(key)
        assert table.source(path) == (key, row)
        assert not table.droppable(key)
    same(table.to_params(tensors, expected), params)
    same(table.from_params(table.to_params(tensors, expected)), tensors)


def test_everything_that_does_not_fit_is_listed(tower):
    table, expected, params = tower
    tensors = table.from_params(params)
    names = list(tensors)
    gone, bent, counted = names[0], names[1], names[2]
    del tensors[gone]
    tensors[bent] = tensors[bent][..., None]
    tensors[counted] = tensors[counted].astype(np.int32)
    tensors["head.extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        table.to_params(tensors, expected)
    message = str(error.value)
    assert f"missing: {gone};" in message
    assert "unknown: head.extra.weight;" in message
    assert f"{bent} is [" in message
    assert f"{counted} is int32" in message


def test_a_layer_too_many_is_unknown(tower):
    table, expected, params = tower
    tensors = table.from_params(params)
    key = next(key for key in tensors if ".0." in key)
    tensors[key.replace(".0.", ".77.")] = tensors[key]
    with pytest.raises(UserError, match="unknown: "):
        table.to_params(tensors, expected)


def test_from_params_names_what_has_no_key(tower):
    table, _, params = tower
    with pytest.raises(UserError, match=r"unknown: adapter/kernel\."):
        table.from_params({**params, "adapter": {"kernel": np.zeros(2, np.float32)}})


def test_droppable_keys_and_dtypes():
    table = KeyTable("a toy", [Row("l.{i}.w", "layer_{i}/kernel", tables.LINEAR)], ["l.{i}.n"])
    expected = {"layer_10": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
    weight = np.arange(6, dtype=np.float16).reshape(3, 2)
    params = table.to_params({"l.10.w": weight, "l.10.n": np.array(5)}, expected)
    kernel = params["layer_10"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, weight.T)
    for key in ("l.010.w", "l.x.w", "l.10.w.", "l10.w"):
        assert table.target(key) is None


def test_rows_must_be_invertible():
    with pytest.raises(ValueError, match="placeholders"):
        KeyTable("a toy", [Row("l.{i}.w", "layer/kernel")])


@pytest.mark.parametrize(
    ("transform", "source", "target"),
    [
        (tables.LINEAR, (2, 3), (3, 2)),
        (tables.CONV, (2, 3, 5, 7), (5, 7, 3, 2)),
        (tables.POINTWISE, (2, 3, 1, 1), (3, 2)),
        (tables.DEPTHWISE, (2, 1, 5, 7), (5, 7, 2)),
    ],
)
def test_transforms(transform, source, target):
    x = np.random.default_rng(0).normal(size=source)
    y = transform.forward(x)
    assert y.shape == target
    np.testing.assert_array_equal(transform.inverse(y), x)
