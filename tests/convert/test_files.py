"""Weight files against what torch and numpy wrote in them."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from clipjax.convert.files import (
    open_sharded,
    open_tensors,
    read_all,
    state_dict,
    write_safetensors,
)
from clipjax.convert.files.torch_objects import DTYPES
from clipjax.errors import UserError
from tests.convert.torch_bytes import (
    archive,
    call,
    mapping,
    module,
    name,
    number,
    sequence,
    storage,
    tensor,
    text,
)

GOLDEN = Path(__file__).parent / "golden" / "files"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
X = np.arange(24, dtype=np.float32)


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, file_name: str = "weights.bin") -> Path:
        path = tmp_path / file_name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    ("golden", "kind"),
    [
        ("state_dict.pt", "torch"),
        ("state_dict_protocol4.pt", "torch"),
        ("training.pt", "torch"),
        ("legacy.pth", "torch_legacy"),
        ("scripted.pt", "torchscript"),
        ("traced.pt", "torchscript"),
    ],
)
def test_reads_what_torch_wrote(golden, kind):
    file = open_tensors(GOLDEN / golden)
    assert file.kind == kind
    expected = EXPECTED[golden]
    prefix = "state_dict." if golden == "training.pt" else ""
    tensors = {key: file.tensors[prefix + key] for key in expected}
    assert len(tensors) == len(file.tensors)
    for key, tensor_ in tensors.items():
        array = tensor_.read()
        assert tensor_.dtype == array.dtype == DTYPES[expected[key]["dtype"]], key
        assert list(tensor_.shape) == list(array.shape) == expected[key]["shape"], key
        assert array.flags.c_contiguous, key
        assert array.flags.aligned, key
        assert array.tobytes().hex() == expected[key]["bytes"], key
        assert tensor_.nbytes == array.nbytes


def test_only_what_must_be_is_copied():
    tensors = open_tensors(GOLDEN / "state_dict.pt").tensors
    plain, tied = tensors["plain"].read(), tensors["tied"].read()
    assert not plain.flags.owndata
    assert not plain.flags.writeable
    assert np.shares_memory(plain, tied)
    assert tensors["transposed"].read().flags.owndata


def test_values_beside_the_tensors():
    file = open_tensors(GOLDEN / "training.pt")
    assert file.other == {
        "epoch": 7,
        "name": "ViT-B-32",
        "best": 0.25,
        "sizes": (3, 4),
        "dtype": "torch.bfloat16",
        "state_dict": {},
    }
    assert file.skipped == ("optimizer", "scaler", "lr_scheduler")
    assert file.dicts == ("state_dict",)
    scripted = open_tensors(GOLDEN / "scripted.pt").other
    assert scripted == {
        "training": False,
        "_is_full_backward_hook": None,
        "width": 6,
        "title": "tower",
    }


def test_the_model_of_a_training_file():
    found = state_dict(open_tensors(GOLDEN / "training.pt"))
    assert (found.entry, found.stripped) == ("state_dict", ("module.",))
    assert "visual.weight" in found.tensors
    assert found.tensors["visual.weight"].read().shape == (3, 4)
    plain = state_dict(open_tensors(GOLDEN / "state_dict.pt"))
    assert (plain.entry, plain.stripped) == ("", ())


W = tensor((2,), (1,))


@pytest.mark.parametrize(
    ("value", "entry", "stripped", "keys"),
    [
        ({"model": {"w": W}, "args": {}}, "model", (), ["w"]),
        ({"module": {"w": W}, "rng": W}, "module", (), ["w"]),
        ({"module.w": W, "module.b": W}, "", ("module.",), ["w", "b"]),
        ({"module._orig_mod.model.w": W}, "", ("module.", "_orig_mod.", "model."), ["w"]),
        ({"module.w": W, "b": W}, "", (), ["module.w", "b"]),
        ({"module.": W}, "", (), ["module."]),
        ({"model": {"w": W}, "state_dict": {"v": W}}, "state_dict", (), ["v"]),
        ({"state_dict": {"weights": {"w": W}}}, "state_dict.weights", (), ["w"]),
        ({"teacher": {"w": W}}, "teacher", (), ["w"]),
        ({"optimizer": {"a": W}, "w": W}, "", (), ["w"]),
        ({"model": {"a": {"w": W}, "b": W}}, "model", (), ["a.w", "b"]),
        ({"w": W, "extra": {"v": W}}, "", (), ["w", "extra.v"]),
    ],
)
def test_where_a_model_is(write, value, entry, stripped, keys):
    def pickled(value):
        return (
            mapping({k: pickled(v) for k, v in value.items()}) if isinstance(value, dict) else value
        )

    found = state_dict(open_tensors(write(archive(pickled(value)))))
    assert found.entry == entry
    assert found.stripped == stripped
    assert list(found.tensors) == keys


def test_which_model_is_meant(write):
    file = open_tensors(
        write(archive(mapping({"student": mapping({"a": W}), "ema": mapping({"b": W})})))
    )
    with pytest.raises(UserError, match=r"several dicts with tensors \(ema, student\)"):
        state_dict(file)
    assert list(state_dict(file, "ema").tensors) == ["b"]
    with pytest.raises(UserError, match=r"'emma' .did you mean 'ema'"):
        state_dict(file, "emma")
    with pytest.raises(UserError, match="holds no tensors"):
        state_dict(open_tensors(write(archive(mapping({"epoch": number(1)})))))


def test_plain_values(write):
    namespace = name("argparse", "Namespace") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    dtype = call(name("numpy", "dtype"), text("f4"), pickle.NEWFALSE, pickle.NEWTRUE)
    dtype += group_state() + pickle.BUILD
    raw = call(name("_codecs", "encode"), text("\0\0\xc0?"), text("latin1"))
    value = {
        "args": namespace
        + mapping({"lr": pickle.BINFLOAT + struct.pack(">d", 0.5)})
        + pickle.BUILD,
        "loss": call(name("numpy.core.multiarray", "scalar"), dtype, raw),
        "device": call(name("torch", "device"), text("cuda"), number(1)),
        "set": call(name("__builtin__", "set"), sequence(number(1), number(2))),
        "milestones": call(name("collections", "Counter"), mapping([(number(30), number(1))])),
        "list": sequence(W, number(5)),
        "empty": sequence(),
        "bytes": raw,
    }
    file = open_tensors(write(archive(mapping(value))))
    assert file.other == {
        "args": {"lr": 0.5},
        "loss": 1.5,
        "device": "cuda:1",
        "set": {1, 2},
        "milestones": {30: 1},
        "list": [5],
        "empty": [],
        "bytes": b"\0\0\xc0?",
    }
    assert list(file.tensors) == ["list.0"]


def group_state() -> bytes:
    none, minus = pickle.NONE, number(-1)
    parts = (number(3), text("<"), none, none, none, minus, minus, number(0))
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def refuse(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read_all(open_tensors(path).tensors)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (tensor((24,), (1,), offset=1), "outside its storage"),
        (tensor((5, 5), (5, 1)), "outside its storage"),
        (tensor((2,), (2**62,)), "outside its storage"),
        (tensor((1000, 1000), (0, 0)), "expanded tensor 'w', larger than its storage"),
        (tensor((-1,), (1,)), "malformed shape"),
        (tensor((2,), (-1,)), "malformed tensor"),
        (tensor((2,), (1,), offset=-1), "malformed tensor"),
        (tensor((2, 2), (1,)), "malformed tensor"),
        (tensor((0, 2**62), (1, 1)), "impossible shape"),
        (tensor((1,) * 40, (1,) * 40), "impossible shape"),
        (
            tensor((2,), (1,), of=storage(count=2**60)),
            "has 96 bytes for the storage '0' instead of",
        ),
        (tensor((2,), (1,), of=storage(count=12)), "96 bytes for the storage '0' instead of 48"),
        (tensor((2,), (1,), of=storage(count=-1)), "malformed storage"),
        (tensor((2,), (1,), of=storage(kind="HalfStorage")), "96 bytes .* instead of 48"),
        (tensor((2,), (1,), of=storage(key="7")), "no record for the storage '7'"),
        (tensor((2,), (1,), of=storage(key="../../etc")), "no record for the storage"),
        (storage(), "a storage without a tensor"),
    ],
)
def test_lying_tensors(write, lie, match):
    refuse(write(archive(mapping({"w": lie}))), match)
    # Training state is not looked at.
    open_tensors(write(archive(mapping({"w": W, "optimizer": mapping({"state": lie})}))))


def test_honest_oddities(write):
    state = {
        "once": tensor((3, 1), (8, 999), offset=5),
        "repeated": tensor((4, 6), (0, 1)),
        "nothing": tensor((0, 7), (7, 1), offset=10**9),
        "scalar": tensor((), ()),
        "last": tensor((1,), (1,), offset=23),
    }
    arrays = read_all(open_tensors(write(archive(mapping(state)))).tensors)
    np.testing.assert_array_equal(arrays["once"], [[5], [13], [21]])
    np.testing.assert_array_equal(arrays["repeated"], np.tile(X[:6], (4, 1)))
    assert arrays["nothing"].shape == (0, 7)
    assert arrays["scalar"].shape == ()
    np.testing.assert_array_equal(arrays["last"], [23])


def test_torch_archives(write):
    body = mapping({"w": W})
    data = struct.pack("<24f", *range(24))
    refuse(write(archive(body, compression=zipfile.ZIP_DEFLATED)), "compressed record")
    refuse(write(archive(body, {"data/0": data, "byteorder": b"big"})), "little-endian machine")
    assert open_tensors(write(archive(body, {"data/0": data, "byteorder": b"little"}))).tensors
    refuse(write(archive(sequence(W))), "no dict of tensors")
    refuse(write(archive(body, scripted=True)), "holds no module")
    refuse(write(archive(mapping([(pickle.NONE, W)]))), "key is no string")
    twice = mapping({"a.b": W, "a": mapping({"b": W})})
    refuse(write(archive(twice)), "two tensors with the key 'a.b'")
    refuse(write(b"junk" + archive(body)), "no weight file of a known format")
    refuse(write(archive(body) * 2), "bytes before the first one|overlap")


def test_torchscript_modules(write):
    inner = module("__torch__.b.___torch_mangle_0.Inner", mapping({"w": W, "skip": number(1)}))
    listed = call(name("torch.jit._pickle", "build_tensorlist"), sequence(W))
    typed = call(
        name("torch.jit._pickle", "restore_type_tag"), mapping({"k": W}), text("Dict[str, Tensor]")
    )
    fields = {"0": inner, "more": listed, "d": typed, "b": W, "n": number(3), "s": text("x")}
    file = open_tensors(write(archive(module("__torch__.A", mapping(fields)), scripted=True)))
    assert file.kind == "torchscript"
    assert list(file.tensors) == ["0.w", "b"]
    assert file.other == {"n": 3, "s": "x"}
    # The same pickle without code beside it is no TorchScript archive, and its classes are strangers.
    refuse(write(archive(module("__torch__.A", mapping(fields)))), "object '__torch__.A'")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty"),
        (b"PK", "no weight file of a known format"),
        (b"PK\x03\x04" + bytes(40), "damaged or truncated zip"),
        (b"hello world", "no weight file of a known format"),
        (b"\x80\x04N.", "a pickle that torch.save did not write"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"weight_map": {}}', "open_sharded"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x93NUMPY\x01\x00", "single numpy array"),
    ],
)
def test_other_files(write, data, match):
    refuse(write(data), match)


def test_other_archives(write):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        out.writestr("readme.txt", "hello")
    refuse(write(stream.getvalue()), "neither torch's nor numpy's")


def test_unreadable_paths(tmp_path):
    refuse(tmp_path / "nowhere.pt", "cannot be read: No such file")
    refuse(tmp_path, "is a directory")
    refuse(Path("/dev/null"), "not a regular file")
    refuse(Path("a\0b"), "cannot be read")
    with pytest.raises(UserError, match="not on a local disk"):
        open_tensors("gs://bucket/model.npz")


@pytest.mark.parametrize("golden", sorted(EXPECTED))
def test_every_truncation_is_refused(write, golden):
    data = (GOLDEN / golden).read_bytes()
    for length in range(0, len(data), 7):
        refuse(write(data[:length]), "truncated|empty|damaged|known format|did not write")


def numpy_archive(save=np.savez, **arrays) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(write, save):
    arrays = {
        "params/img/kernel": X.reshape(2, 3, 4),
        "params/img/columns": np.asfortranarray(X.reshape(4, 6)),
        "params/t": np.float32(2.5),
        "params/brain": X.astype(ml_dtypes.bfloat16).reshape(6, 4),
        "params/none": np.zeros((0, 3), np.float16),
        "opt/m": X,
        "step": np.int64(3),
    }
    path = write(numpy_archive(save, **arrays), "weights.npz")
    file = open_tensors(path)
    assert file.kind == "npz"
    assert list(file.tensors) == list(arrays)
    for key, value in arrays.items():
        array = file.tensors[key].read()
        assert file.tensors[key].dtype == array.dtype == value.dtype, key
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, value)
    with np.load(path) as loaded:  # numpy itself has forgotten what it is
        assert loaded["params/brain"].dtype == np.dtype("V2")
    found = state_dict(file)
    assert found.entry == "params"
    assert list(found.tensors) == ["img/kernel", "img/columns", "t", "brain", "none"]
    old = open_tensors(write(numpy_archive(**{"opt/target/w": X, "opt/state/m": X})))
    assert list(state_dict(old).tensors) == ["w"]
    assert list(state_dict(open_tensors(write(numpy_archive(w=X)))).tensors) == ["w"]


def npy(header: str, data: bytes = b"") -> bytes:
    text_ = header.encode("latin-1") + b"\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text_)) + text_ + data
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        out.writestr("w.npy", body)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "8 bytes .* instead of 12"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "8 bytes .* instead of 4"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", "malformed shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2**62)}", "damaged header"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,)}",
            "impossible shape",
        ),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", r"of \|O, which is no"),
        ("{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}", "of >f4, which is no little"),
        ("{'descr': '<U2', 'fortran_order': False, 'shape': (1,)}", "of <U2"),
        ("{'descr': '|V4', 'fortran_order': False, 'shape': (2,)}", r"of \|V4"),
        ("{'descr': [('a', '<i2')], 'fortran_order': False, 'shape': (4,)}", r"of \|V2"),
        ("{'descr': '<f4', 'fortran_order': 7, 'shape': (2,)}", "damaged header"),
        ("__import__('os').system('true')", "damaged header"),
        ("[" * 9000, "damaged header"),
    ],
)
def test_lying_arrays(write, header, match):
    refuse(write(npy(header, bytes(8))), match)


def test_object_arrays_are_never_unpickled(write):
    with pytest.raises(UserError, match="no little-endian number"):
        open_tensors(write(numpy_archive(a=np.array([{}], dtype=object))))


def test_a_bomb_is_inflated_only_when_it_is_asked_for(write):
    size = 10**7 + 128  # with the header
    data = numpy_archive(np.savez_compressed, zeros=np.zeros(10**7, np.uint8), w=X)
    assert len(data) < 20_000
    file = open_tensors(write(data))
    assert file.tensors["zeros"].nbytes == 10**7
    tracemalloc.start()
    np.testing.assert_array_equal(file.tensors["w"].read(), X)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    # In the directory at the end, the array is said to be larger than deflate could make it.
    lied = data[::-1].replace(struct.pack(">I", size), struct.pack(">I", 2**31), 1)[::-1]
    refuse(write(lied), "'zeros.npy' with a wrong size")


def test_a_flipped_bit_in_compressed_weights(write):
    data = bytearray(numpy_archive(np.savez_compressed, w=np.arange(999)))
    data[400] ^= 16
    refuse(write(bytes(data)), "damaged record 'w.npy'")


@pytest.fixture
def sharded(tmp_path):
    arrays = {f"w{i}": X + i for i in range(5)}
    tensors = [(key, x.shape, x.dtype, lambda x=x: x) for key, x in arrays.items()]
    *_, index = write_safetensors(tmp_path / "model", tensors, max_shard_bytes=200)
    return index, arrays


def test_shards(sharded):
    index, arrays = sharded
    file = open_sharded(index)
    assert (file.kind, file.path) == ("safetensors", index)
    assert list(file.tensors) == list(arrays)
    for key, array in read_all(file.tensors).items():
        np.testing.assert_array_equal(array, arrays[key])


def test_torch_shards(tmp_path):
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(archive(mapping({"a": W})))
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(archive(mapping({"b": W})))
    index = tmp_path / "pytorch_model.bin.index.json"
    names = {key: f"pytorch_model-0000{i}-of-00002.bin" for i, key in ((1, "a"), (2, "b"))}
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    file = open_sharded(index)
    assert (file.kind, sorted(file.tensors)) == ("torch", ["a", "b"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(w0="../model-00001-of-00003.safetensors"), "no plain file name"),
        (lambda m: m.update(w0="/etc/passwd"), "no plain file name"),
        (lambda m: m.update(w0="a\\b"), "no plain file name"),
        (lambda m: m.update(w0=".."), "no plain file name"),
        (lambda m: m.update(w0=""), "no plain file name"),
        (lambda m: m.update(w0=3), "no plain file name"),
        (lambda m: m.update(w0="gone.safetensors"), "not beside it"),
        (lambda m: m.update(w9=m["w0"]), "lists 'w9', which its shard '.*' does not have"),
        (lambda m: m.pop("w0"), "does not list 'w0'"),
        (lambda m: m.update(w0=m["w4"]), "does not list 'w0'"),
        (lambda m: m.clear(), "no index of shards"),
    ],
)
def test_lying_indices(sharded, change, match):
    index, _ = sharded
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=match):
        open_sharded(index)


def test_indices_that_are_none(sharded):
    index, _ = sharded
    for content in (
        "[]",
        "{}",
        "{",
        '{"weight_map": []}',
        "\xff",
        '{"weight_map": 1, "weight_map": 2}',
    ):
        index.write_text(content)
        with pytest.raises(UserError, match=r"index of shards|JSON"):
            open_sharded(index)
    with pytest.raises(UserError, match="cannot be read"):
        open_sharded(index.with_name("none.json"))
