"""The mesh, the table of axis rules, and what is split how."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from clipjax import mesh, rules
from clipjax.errors import UserError
from clipjax.models import example_batch, layers, make_model
from clipjax.plan.topology import find
from clipjax.train import train
from tests.tiny_run import tiny_config


def sizes_of(made):
    return dict(made.shape)


def test_meshes():
    full = {"data": 1, "fsdp": 1, "tensor": 1, "expert": 1}
    assert sizes_of(mesh.make_mesh()) == full | {"data": 8}
    assert sizes_of(mesh.make_mesh({"fsdp": 8})) == full | {"fsdp": 8}
    assert sizes_of(mesh.make_mesh({"data": -1, "tensor": 2})) == full | {"data": 4, "tensor": 2}
    assert sizes_of(mesh.make_mesh({"data": 2, "fsdp": -1, "tensor": 2})) == full | {
        **{"data": 2, "fsdp": 2, "tensor": 2}
    }
    assert sizes_of(mesh.make_mesh(devices=jax.devices()[:3])) == full | {"data": 3}
    assert mesh.make_mesh({"fsdp": 4, "data": 2}).axis_names == mesh.AXES


@given(st.dictionaries(st.sampled_from(mesh.AXES), st.integers(-2, 9)))
def test_any_sizes_fill_the_devices_or_are_refused(sizes):
    try:
        made = mesh.make_mesh(sizes)
    except UserError:
        return
    assert made.size == 8
    for axis, size in sizes.items():
        assert size in (-1, made.shape[axis])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, r"data=3, .* does not fill the 8 device\(s\)"),
        ({"data": -1, "fsdp": 3}, "does not fill"),
        ({"data": -1, "fsdp": 16}, "does not fill"),
        ({"data": -1, "fsdp": -1}, "at most one may be -1"),
        ({"data": 0}, "must be positive"),
        ({"data": "two"}, "config.mesh.data must be a whole number, not 'two'"),
        ({"dta": 8}, "The mesh has no axis 'dta'; its axes are data, fsdp, tensor, expert"),
    ],
)
def test_meshes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message):
        mesh.make_mesh(sizes)


def test_batches_are_split_over_data_and_fsdp():
    made = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert mesh.batch_shards(made) == 4
    array = jax.device_put(np.arange(24).reshape(8, 3), mesh.batch_sharding(made))
    rows = {tuple(np.asarray(s.data)[:, 0]) for s in array.addressable_shards}
    assert rows == {(0, 3), (6, 9), (12, 15), (18, 21)}
    assert mesh.replicated(made).spec == P()


@pytest.fixture(scope="module")
def boxed():
    config = tiny_config()
    model = make_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch(config.model))
    return shapes["params"]


def test_parameters_are_split_as_the_table_says(boxed):
    made = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = {p: s.spec for p, s in rules.paths(mesh.parameter_shardings(boxed, made)).items()}
    block = "image/transformer/blocks"
    # The layer axis in front is never split.
    assert specs[f"{block}/mlp/fc_in/kernel"] == P(None, "fsdp", "tensor")
    assert specs[f"{block}/mlp/fc_out/kernel"] == P(None, "tensor", "fsdp")
    assert specs[f"{block}/mlp/fc_in/bias"] == P(None, "tensor")
    assert all(axis is None for axis in specs[f"{block}/norm_1/scale"])
    assert specs["text/token_embedding"] == P("tensor", "fsdp")
    assert specs["image/stem/kernel"] == P(None, None, None, "fsdp")
    assert specs["logit_scale"] == P()
    shapes = rules.paths(nn.unbox(boxed))
    for path, spec in specs.items():
        parts = [made.shape[a] if a else 1 for a in spec]
        assert all(n % p == 0 for n, p in zip(shapes[path].shape, parts, strict=False)), path


def test_what_does_not_divide_stays_whole(boxed):
    made = mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 3}, jax.devices()[:3])
    specs = {p: s.spec for p, s in rules.paths(mesh.parameter_shardings(boxed, made)).items()}
    assert specs["text/token_embedding"] == P("tensor", "fsdp")  # 48 letters
    assert specs["image/transformer/blocks/mlp/fc_in/kernel"] == P(None, "fsdp", None)  # 64 wide


def box(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_what_stays_whole_is_named():
    boxed = {
        "tower": {
            "kernel": box((27, 1152, 4304), None, "embed", "mlp"),
            "bias": box((1152,), "embed"),
            "small": box((4,), "embed"),
        },
        "head": jax.ShapeDtypeStruct((5000, 1000), jnp.float32),
    }
    types = (jax.sharding.AxisType.Auto,) * 4

    def told(*sizes):
        return mesh.remarks(boxed, jax.sharding.AbstractMesh(sizes, mesh.AXES, axis_types=types))

    assert told(8, 1, 1, 1) == []
    (fsdp, nameless) = told(1, 256, 1, 1)
    assert (
        "config.mesh.fsdp = 256 does not divide 1152 of tower/kernel [27, 1152, 4304] and 2 more"
        in fsdp
    )
    assert "0.54 GB a device instead of 0.00; 4 would divide all of them" in fsdp
    assert nameless.startswith("head [5000, 1000]: held whole by every device")
    (tensor, _) = told(2, 1, 3, 1)
    assert "config.mesh.tensor = 3 does not divide 4304 of tower/kernel" in tensor
    assert "nothing above 1 would divide" in tensor
    del boxed["tower"]["kernel"], boxed["head"]  # what is left is not worth a word
    assert told(1, 256, 1, 1) == []


def test_a_run_says_what_stays_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mesh, "LARGE", 1000)
    odd = ("mesh.data=2", "mesh.tensor=4", "model.text.vocab_size=50")
    train(tiny_config("evals={}", *odd, steps=2), tmp_path)
    assert (
        "config.mesh.tensor = 4 does not divide 50 of text/token_embedding"
        in capsys.readouterr().err
    )


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the compiler of `plan`")
def test_neighbours_on_a_tpu_are_neighbours_on_the_mesh():
    made = mesh.make_mesh({"data": 2, "fsdp": 8}, find("v5e:4x4").devices)
    rows = [[d.coords for d in row] for row in made.devices.reshape(2, 8)]
    # Each row of eight is a compact 2 x 4 part of the 4 x 4 torus.
    assert all(len({(x, y) for x, y, _ in row}) == 8 for row in rows)
    assert all(
        (len({x for x, *_ in r}), len({y for _, y, _ in r})) in ((2, 4), (4, 2)) for r in rows
    )


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the compiler of `plan`")
def test_slices_lie_along_data(boxed):
    devices = find("v5e:2x2", 2).devices
    made = mesh.make_mesh({"data": 4, "fsdp": 2}, devices)
    slices = np.vectorize(lambda d: d.slice_index)(made.devices)[:, :, 0, 0]
    assert slices.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert mesh.remarks(boxed, made) == []
    across = mesh.make_mesh({"fsdp": 8}, devices)
    (said,) = mesh.remarks(boxed, across)
    assert "config.mesh.data = 1 is not a multiple of the 2 slices" in said


def test_constrain():
    made = mesh.make_mesh({"data": 4, "fsdp": 2})
    x = jnp.ones((8, 6))
    assert mesh.constrain(x, "batch", None) is x  # no mesh is set
    with jax.set_mesh(made):
        split = jax.jit(lambda x: mesh.constrain(x + 1, "batch", None))(x)
        whole = jax.jit(lambda x: mesh.constrain(x + 1, "batch", None))(jnp.ones((6, 6)))
    assert split.sharding.shard_shape(split.shape) == (1, 6)
    np.testing.assert_array_equal(whole, 2.0)


class Device:
    """Enough of a device for its place in the network."""

    platform = "gpu"

    def __init__(self, number, process_index):
        self.id, self.process_index = number, process_index


@pytest.mark.parametrize(
    ("sizes", "axes", "hosts", "groups"),
    [
        ({"data": 8}, ("data",), 2, 2),
        ({"data": 8}, ("data",), 8, 8),
        ({"data": 2, "fsdp": 4}, ("data", "fsdp"), 4, 4),
        ({"data": 2, "tensor": 4}, ("data",), 2, 2),
        ({"data": 4, "tensor": 2}, ("data",), 2, 2),
        ({"data": 2, "tensor": 4}, ("data",), 4, 2),
        ({"data": 8}, ("data",), 3, 1),  # not equal
    ],
)
def test_groups_of_a_fast_network(sizes, axes, hosts, groups):
    shape = [sizes.get(a, 1) for a in mesh.AXES]
    devices = [Device(i, i * hosts // 8) for i in range(8)]
    made = jax.sharding.Mesh(np.array(devices, object).reshape(shape), mesh.AXES)
    assert mesh.network_groups(made, axes) == groups


def test_each_device_has_its_own_rows_of_a_class_table():
    class Centres(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.normal()
            table = layers.parameter(self, "centres", init, (16, 6), ("class", None), "float32")
            return x @ table.T

    boxed = jax.eval_shape(Centres().init, jax.random.key(0), jnp.zeros((2, 6)))["params"]
    made = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spec = mesh.parameter_shardings(boxed, made)["centres"].spec
    assert spec == P(("data", "fsdp"), None)
