"""Key tables: nothing is lost in either direction, and whatever does not fit is named."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from clipjax.convert import efficientnet_lite, layouts, minilm
from clipjax.convert.files import Tensor
from clipjax.convert.tables import KeyTable, Row, Zero
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
    assert tensors.keys() == table.entries(expected).keys()
    assert not any(table.drops(key) for key in tensors)
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
    with pytest.raises(UserError, match=r"has no place for adapter/kernel\."):
        table.from_params({**params, "adapter": {"kernel": np.zeros(2, np.float32)}})


def test_droppable_keys_and_dtypes():
    table = KeyTable("a toy", [Row("l.{i}.w", "layer_{i}/kernel", layouts.LINEAR)], ["l.{i}.n"])
    expected = {"layer_10": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
    weight = np.arange(6, dtype=np.float16).reshape(3, 2)
    params = table.to_params({"l.10.w": weight, "l.10.n": np.array(5)}, expected)
    kernel = params["layer_10"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, weight.T)
    for key in ("l.010.w", "l.x.w", "l.10.w.", "l10.w", "l.010.n"):
        with pytest.raises(UserError, match=f"unknown: {re.escape(key)}"):
            table.to_params({"l.10.w": weight, key: weight}, expected)


def test_rows_must_be_invertible():
    with pytest.raises(ValueError, match="placeholders"):
        KeyTable("a toy", [Row("l.{i}.w", "layer/kernel")])


STACKED = KeyTable(
    "a stacked toy",
    [
        Row("h.{i}.w", "blocks/{i}/kernel", layouts.LINEAR, first=2),
        *(
            Row(f"h.{{i}}.{part}", "blocks/{i}/qkv", layouts.LINEAR, select=np.s_[:, n], first=2)
            for n, part in enumerate("qkv")
        ),
        Row("h.{i}.e.{j}", "blocks/{i}/experts/{j}/bias", first=2),
        Row("kv", ("key", "value"), layouts.LINEAR),
    ],
    zeros=[Zero("half", (0,))],
    written={"numbers": np.arange(3)},
)
SHAPES = {
    "blocks/kernel": (3, 4, 5),
    "blocks/qkv": (3, 4, 3, 2, 2),
    "blocks/experts/bias": (3, 2, 6),
    "key": (4, 7),
    "value": (4, 3),
    "half": (2, 3),
}


def stacked():
    rng = np.random.default_rng(1)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    params["half"][0] = 0
    return params


def with_half():
    return dataclasses.replace(STACKED, rows=(*STACKED.rows, Row("half", "half", select=(1,))))


def test_stacks_parts_and_joined_tensors():
    table, params = with_half(), stacked()
    tensors = table.from_params(params)
    layers = [f"h.{i}.{name}" for i in (2, 3, 4) for name in ("w", "q", "k", "v", "e.0", "e.1")]
    assert set(tensors) == {*layers, "kv", "half", "numbers"}
    np.testing.assert_array_equal(tensors["h.3.w"], params["blocks/kernel"][1].T)
    keys = params["blocks/qkv"][2, :, 1].reshape(4, 4).T
    np.testing.assert_array_equal(tensors["h.4.k"], keys)
    np.testing.assert_array_equal(tensors["h.2.e.1"], params["blocks/experts/bias"][0, 1])
    np.testing.assert_array_equal(
        tensors["kv"], np.concatenate([params["key"].T, params["value"].T])
    )
    same(table.to_params(tensors, params), unflatten_dict(params, sep="/"))


def test_parameters_are_read_once_and_one_at_a_time():
    table, params, read = with_half(), stacked(), []

    def tensor(path):
        array = params[path]
        return Tensor(array.shape, array.dtype, lambda: read.append(path) or array)

    found = table.tensors({path: tensor(path) for path in params})
    assert read == []
    for item in found.values():
        item.read()
    joined = {"key", "value"}
    assert [path for path in read if path not in joined] == [p for p in SHAPES if p not in joined]
    assert sorted(set(read)) == sorted(SHAPES)


def test_a_part_that_must_be_zero():
    params = stacked()
    params["half"][0, 1] = 1e-9
    with pytest.raises(UserError, match="takes a part of half for zero, and here it is not"):
        with_half().from_params(params)


def test_a_part_without_a_row_has_no_place():
    with pytest.raises(UserError, match="A stacked toy has no place for half"):
        STACKED.from_params(stacked())


def test_the_layers_of_a_stack_may_differ_in_dtype():
    table, params = with_half(), stacked()
    tensors = table.from_params(params)
    for key in tensors:
        if key.endswith(".w"):
            tensors[key] = tensors[key].astype(np.float16)
    tensors["h.2.w"] = tensors["h.2.w"].astype(np.float32)
    leaves = table.leaves(tensors, params)
    assert leaves["blocks/kernel"].dtype == np.float32
    np.testing.assert_array_equal(leaves["blocks/kernel"].read()[0], tensors["h.2.w"].T)


def test_prefixes_can_be_left_out():
    table = KeyTable("a toy", [Row("a.w", "w"), Row("b.a.v", "v")], ["a.n"])
    short = table.without(("a.",))
    params = {"w": np.ones(2, np.float32), "v": np.ones(3, np.float32)}
    assert short.from_params(params).keys() == {"w", "b.a.v"}
    assert short.drops("n")
    assert not short.drops("a.n")


@pytest.mark.parametrize(
    ("layout", "source", "target"),
    [
        (layouts.LINEAR, (6, 3), (3, 6)),
        (layouts.LINEAR, (12, 5), (5, 3, 2, 2)),
        (layouts.CONV, (2, 3, 5, 7), (5, 7, 3, 2)),
        (layouts.POINTWISE, (2, 3, 1, 1), (3, 2)),
        (layouts.DEPTHWISE, (2, 1, 5, 7), (5, 7, 2)),
        (layouts.PATCHES, (7, 12), (2, 2, 3, 7)),
        (layouts.FLAT, (12,), (3, 2, 2)),
        (layouts.ONE, (1,), ()),
        (layouts.LEADING_1, (1, 2, 3), (2, 3)),
        (layouts.DROP_1, (3,), (1, 3)),
        (layouts.split_axis(-1, 2), (3, 2, 4), (3, 8)),
        (layouts.split_axis(-2, 2), (5, 2, 4, 3), (5, 8, 3)),
    ],
)
def test_layouts(layout, source, target):
    x = np.random.default_rng(0).normal(size=source)
    y = layout.forward(x, target)
    assert y.shape == target
    assert layout.source_shape(target) == source
    np.testing.assert_array_equal(layout.inverse(y), x)
