"""The legacy torch reader against files written here, honest and hostile."""

import contextlib
import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from clipjax.convert.files import open_tensors, read_all
from clipjax.convert.files.torch_legacy import MAGIC, PROTOCOL
from clipjax.errors import UserError

SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


class Storage(NamedTuple):
    key: str
    data: np.ndarray
    kind: str = "FloatStorage"
    count: int | None = None  # what the pickle says, if not the truth


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.args = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.args


@pytest.fixture
def torch_names(monkeypatch):
    """Modules of torch's names, so that pickle can write references into them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise AssertionError("only its name is used")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def legacy(torch, state, storages, *, magic=MAGIC, system=SYSTEM, keys=None) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            count = obj.data.size if obj.count is None else obj.count
            return "storage", getattr(torch, obj.kind), obj.key, "cpu", count, None

    stream = io.BytesIO()
    for value in (magic, PROTOCOL, system, state):
        Pickler(stream, protocol=2).dump(value)
    pickle.dump([s.key for s in storages] if keys is None else keys, stream, protocol=2)
    for storage in storages:
        stream.write(struct.pack("<q", storage.data.size) + storage.data.tobytes())
    return stream.getvalue()


@pytest.fixture
def honest(torch_names):
    a = Storage("0", np.arange(24, dtype=np.float32))
    b = Storage("1", np.array([7], np.int64), "LongStorage")
    state = OrderedDict(
        whole=Tensor(a, 0, (2, 3, 4), (12, 4, 1)),
        permuted=Tensor(a, 0, (4, 2, 3), (1, 12, 4)),
        part=Tensor(a, 5, (3, 1), (8, 999)),
        count=Tensor(b, 0, (), ()),
    )
    state._metadata = OrderedDict(version=1)
    return legacy(torch_names, state, [a, b])


def read(tmp_path: Path, data: bytes) -> dict[str, np.ndarray]:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    file = open_tensors(path)
    assert file.kind == "torch_legacy"
    return read_all(file.tensors)


def refuse(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(UserError, match=match):
        read(tmp_path, data)


def test_reads_any_strides(tmp_path, honest):
    tensors = read(tmp_path, honest)
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(tensors["whole"], whole)
    np.testing.assert_array_equal(tensors["permuted"], whole.transpose(2, 0, 1))
    np.testing.assert_array_equal(tensors["part"], [[5], [13], [21]])
    assert tensors["count"].shape == ()
    assert tensors["count"].dtype == np.int64
    assert tensors["count"] == 7
    assert all(t.flags.c_contiguous and t.flags.aligned for t in tensors.values())


def test_every_truncation_is_refused(tmp_path, honest):
    for length in range(len(honest)):
        refuse(tmp_path, honest[:length], "truncated|empty|damaged|did not write|no weight file")
    refuse(tmp_path, honest + b"\0", "1 bytes after its last storage")


def test_a_flipped_byte_never_escapes_as_another_error(tmp_path, honest):
    for position in range(len(honest)):
        for bit in (0, 6):
            data = bytearray(honest)
            data[position] ^= 1 << bit
            with contextlib.suppress(UserError):
                read(tmp_path, bytes(data))


class Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["magic", "system", "state", "entry", "keys"])
def test_a_planted_pickle_is_not_run(tmp_path, torch_names, place):
    mark = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists()  # so the plant works where it is run
    mark.unlink()
    plant = Touch(mark)
    given = {"magic": MAGIC, "system": SYSTEM, "state": {}, "keys": []}
    if place == "entry":
        given["state"] = OrderedDict(weight=plant)
    else:
        given[place] = plant
    state = given.pop("state")
    # Without its magic number the file is not even looked into.
    match = "did not write" if place == "magic" else "holds the Python object '__builtin__.getattr'"
    refuse(tmp_path, legacy(torch_names, state, [], **given), match)
    assert not mark.exists()


def test_hijacked_dict_methods_are_not_called(tmp_path, torch_names):
    state = OrderedDict()
    state.items = OrderedDict  # stored as an attribute that shadows the method
    assert read(tmp_path, legacy(torch_names, state, [])) == {}


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        ((1, (24,), (1,)), "'x' that reaches outside its storage"),
        ((0, (2, 3), (20, 2)), "'x' that reaches outside its storage"),
        ((0, (1000, 1000), (0, 0)), "expanded tensor 'x', larger than its storage"),
        ((-1, (2,), (1,)), "malformed tensor 'x'"),
        ((0, (2,), (-1,)), "malformed tensor 'x'"),
        ((0, (2, 2), (1,)), "malformed tensor 'x'"),
        ((0, (0, 2**62), (1, 1)), "'x' an impossible shape"),
        ((0, "ab", (1, 1)), "'x' a malformed shape"),
    ],
)
def test_lying_tensors(tmp_path, torch_names, tensor, match):
    a = Storage("0", np.zeros(24, np.float32))
    refuse(tmp_path, legacy(torch_names, {"x": Tensor(a, *tensor)}, [a]), match)


def test_lying_storages(tmp_path, torch_names):
    a = Storage("0", np.zeros(8, np.float32))
    long = a._replace(count=2**60)
    half = a._replace(kind="HalfStorage")

    def file(state, keys=None):
        return legacy(torch_names, state, [a], keys=keys)

    one, two = Tensor(a, 0, (2,), (1,)), Tensor(half, 0, (2,), (1,))
    refuse(tmp_path, file({"x": Tensor(long, 0, (2,), (1,))}), "has 32 bytes for the storage")
    short = Tensor(a._replace(count=4), 0, (2,), (1,))
    refuse(tmp_path, file({"x": short}), "32 bytes for the storage '0' instead of 16")
    refuse(tmp_path, file({"x": one, "y": two}), "describes the storage '0' in two ways")
    refuse(tmp_path, file({"x": one}, keys=["1"]), "list of storages")
    refuse(tmp_path, file({"x": one}, keys=["0", "0"]), "list of storages")
    refuse(tmp_path, file([one]), "no dict of tensors")


def test_other_files(tmp_path):
    refuse(tmp_path, b"PK\x03\x04" + bytes(100), "zip archive")
    refuse(tmp_path, pickle.dumps({"a": 1}), "pickle that torch.save did not write")
    with pytest.raises(UserError, match="cannot be read"):
        open_tensors(tmp_path / "nowhere.pth")
