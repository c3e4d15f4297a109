"""The safetensors format, against its library and against headers that lie."""

import json
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load_file, save

from clipjax.convert.files import Tensor, open_sharded, open_tensors, read_all, write_safetensors
from clipjax.convert.files.mapped import let_go
from clipjax.convert.files.safetensors_reader import DTYPES
from clipjax.errors import UserError

ARRAYS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "visual.proj": np.arange(6, dtype=np.float32).reshape(3, 2),
    "brain": np.arange(5).astype(ml_dtypes.bfloat16),
    'na"me\n\x01/ß\\': np.array([1, -1], np.int64),
    "flag": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
    "byte": np.arange(3, dtype=np.uint8),
    "tiny": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
}


def described(arrays: dict[str, np.ndarray]) -> list[tuple]:
    return [(key, x.shape, x.dtype, lambda x=x: x) for key, x in sorted(arrays.items())]


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def write(tmp_path):
    def write(data: bytes) -> Path:
        path = tmp_path / "x.safetensors"
        path.write_bytes(data)
        return path

    return write


def test_reads_what_the_library_wrote(write):
    path = write(save({**ARRAYS}, {"format": "pt", "by": "ß"}))
    file = open_tensors(path)
    assert file.kind == "safetensors"
    assert file.metadata == {"format": "pt", "by": "ß"}
    assert set(file.tensors) == set(ARRAYS)
    for key, value in ARRAYS.items():
        tensor = file.tensors[key]
        array = tensor.read()
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
        assert (tensor.shape, tensor.dtype) == (value.shape, value.dtype)
        assert array.tobytes() == value.tobytes()
        assert array.flags.aligned
        assert not array.size or not array.flags.owndata


def resident(path):
    """Kilobytes of a mapped file that are in this process's memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    return sum(int(next(x for x in lines[i + 1 :] if x.startswith("Rss:")).split()[1]) for i in at)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_what_was_read_can_be_let_go(tmp_path):
    large = np.arange(2**20, dtype=np.float32)
    write_safetensors(tmp_path / "x", [("w", large.shape, large.dtype, lambda: large)])
    tensor = open_tensors(tmp_path / "x").tensors["w"]
    view = tensor.read()
    assert view.sum() == large.sum()
    assert resident(tmp_path / "x") >= 4000
    let_go(view.reshape(1024, 1024).T)
    assert resident(tmp_path / "x") < 100
    np.testing.assert_array_equal(view, large)
    let_go(large)
    np.testing.assert_array_equal(large[:3], [0, 1, 2])


def test_tensors_are_asked_for_in_the_order_given(tmp_path):
    asked = []
    names = {"b": np.float32, "a": np.float32, "d": np.float16, "c": np.float32}
    rows = [
        (k, (3,), np.dtype(d), lambda k=k, d=d: asked.append(k) or np.zeros(3, d))
        for k, d in names.items()
    ]
    write_safetensors(tmp_path / "x", rows)
    assert asked == ["b", "a", "c", "d"]  # wider ones first
    assert load_file(tmp_path / "x").keys() == names.keys()


def test_writes_what_the_library_writes(tmp_path):
    """Byte for byte, the order of the metadata aside, which in the library is random."""
    assert write_safetensors(tmp_path / "x", described(ARRAYS), {"format": "pt"}) == [
        tmp_path / "x"
    ]
    assert (tmp_path / "x").read_bytes() == save(ARRAYS, {"format": "pt"})
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    plain = {
        key: x for key, x in ARRAYS.items() if x.dtype.kind in "fiub" and x.dtype.isbuiltin == 1
    }
    write_safetensors(tmp_path / "y", described(plain))
    for key, value in load_file(tmp_path / "y").items():
        np.testing.assert_array_equal(value, plain[key])
        assert value.shape == plain[key].shape


def test_every_dtype_goes_round(tmp_path):
    arrays = {name: np.arange(2).astype(dtype).reshape(2, 1) for name, dtype in DTYPES.items()}
    write_safetensors(tmp_path / "x", described(arrays))
    for key, array in read_all(open_tensors(tmp_path / "x").tensors).items():
        assert array.dtype == arrays[key].dtype
        assert array.tobytes() == arrays[key].tobytes()
        assert array.flags.aligned
    described_by_library = dict(deserialize((tmp_path / "x").read_bytes()))
    assert {key: entry["dtype"] for key, entry in described_by_library.items()} == {
        key: key for key in arrays
    }


def test_one_tensor_in_memory_at_a_time(tmp_path):
    size = 2**20

    def read():
        return np.zeros(size, np.float32)

    tensors = [(f"w{i}", (size,), np.dtype(np.float32), read) for i in range(8)]
    tracemalloc.start()
    write_safetensors(tmp_path / "x", iter(tensors))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 4 * size
    assert (tmp_path / "x").stat().st_size > 8 * 4 * size


def test_strided_and_converted_arrays_are_written_in_order(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path / "x", [("w", (3, 2), np.dtype(np.float32), lambda: x)])
    np.testing.assert_array_equal(open_tensors(tmp_path / "x").tensors["w"].read(), x)


def test_shards(tmp_path):
    arrays = {f"w{i}": np.full(10, i, np.float32) for i in range(4)}
    arrays["z"] = np.zeros(100, np.float32)
    files = write_safetensors(tmp_path / "out", described(arrays), max_shard_bytes=80)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in files] == [*names, "model.safetensors.index.json"]
    index = json.loads(files[-1].read_text())
    assert index["metadata"] == {"total_size": 560}
    assert index["weight_map"] == {
        "w0": names[0],
        "w1": names[0],
        "w2": names[1],
        "w3": names[1],
        "z": names[2],
    }
    for key, array in read_all(open_sharded(files[-1]).tensors).items():
        np.testing.assert_array_equal(array, arrays[key])
    assert set(load_file(files[0])) == {"w0", "w1"}
    small = write_safetensors(tmp_path / "small", described(arrays), max_shard_bytes=10**6)
    assert [file.name for file in small] == ["model.safetensors"]


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_safetensors(tmp_path / "x", described(ARRAYS))
    assert (tmp_path / "x").read_text() == "mine"
    (tmp_path / "model.safetensors.index.json").write_text("mine")
    with pytest.raises(UserError, match=r"index\.json exists already"):
        write_safetensors(tmp_path, described(ARRAYS), max_shard_bytes=8)

    def broken():
        raise KeyError("lost")

    tensors = [*described(ARRAYS), ("z", (1,), np.dtype(np.uint8), broken)]
    with pytest.raises(KeyError):
        write_safetensors(tmp_path / "y", tensors)
    with pytest.raises(UserError, match="not a directory that can be written"):
        write_safetensors(tmp_path / "x" / "under_a_file", described(ARRAYS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors.index.json", "x"]


@pytest.mark.parametrize(
    ("tensor", "error", "match"),
    [
        (
            ("w", (2,), np.dtype(np.float32), lambda: np.zeros(3, np.float32)),
            ValueError,
            "announced",
        ),
        (("w", (2,), np.dtype(np.float32), lambda: np.zeros(2)), ValueError, "announced"),
        (("w", (2,), np.dtype("U2"), lambda: None), UserError, "no dtype <U2"),
        (("half", (2,), np.dtype(np.float32), lambda: None), UserError, "given twice"),
        (("__metadata__", (2,), np.dtype(np.float32), lambda: None), UserError, "needs itself"),
    ],
)
def test_what_cannot_be_written(tmp_path, tensor, error, match):
    with pytest.raises(error, match=match):
        write_safetensors(tmp_path / "x", [*described({"half": ARRAYS["half"]}), tensor])
    assert not list(tmp_path.iterdir())


def entry(dtype="F32", shape=(2,), place=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (raw({"w": entry()}, bytes(7)), "is truncated: it has"),
        (raw({"w": entry()}, bytes(9)), "longer than it should be"),
        (raw({"w": entry()}, bytes(8), length=2**40), "header of more than 100000000 bytes"),
        (raw({"w": entry()}, bytes(8), length=10**6), "is truncated"),
        (raw({"w": entry()}, bytes(8), length=20), "damaged JSON"),
        (raw({"w": entry(shape=(3,))}, bytes(8)), "8 bytes for the tensor 'w' instead of 12"),
        (raw({"w": entry(shape=(-2,))}, bytes(8)), "malformed shape"),
        (raw({"w": entry(shape=(True, 2))}, bytes(8)), "malformed shape"),
        (raw({"w": entry(shape=(2.0,))}, bytes(8)), "malformed shape"),
        (raw({"w": entry(shape=(2**40, 2**40), place=(0, 0))}), "impossible shape"),
        (raw({"w": entry(shape=(0, 2**62), place=(0, 0))}), "impossible shape"),
        (raw({"w": entry(shape=(1,) * 33, place=(0, 4))}, bytes(4)), "impossible shape"),
        (raw({"w": entry(dtype="F4")}, bytes(8)), "dtype 'F4', which numpy has not"),
        (raw({"w": entry(dtype=7)}, bytes(8)), "dtype 'int'"),
        (raw({"w": entry(place=(8, 0))}, bytes(8)), "-8 bytes"),
        (raw({"w": entry(place=(-8, 0))}, bytes(8)), "malformed place"),
        (raw({"w": entry(place=(0, 8, 9))}, bytes(8)), "malformed place"),
        (raw({"w": entry(place=(1, 9))}, bytes(9)), "holes"),
        (raw({"w": entry(), "v": entry(place=(4, 12))}, bytes(12)), "holes"),
        (raw({"w": entry(), "v": entry()}, bytes(8)), "holes"),
        (raw({"w": entry(), "v": entry(place=(12, 20))}, bytes(20)), "holes"),
        (raw({"w": 3}, bytes(8)), "malformed entry"),
        (raw({"w": {}}, bytes(8)), "dtype 'NoneType'"),
        (raw({"w" * 2000: entry()}, bytes(8)), "at most 1000 characters"),
        (raw({"__metadata__": {"a": 1}}), "malformed metadata"),
        (raw({"__metadata__": []}), "malformed metadata"),
        (raw(b'{"w": {"dtype": "F32"}, "w": {"dtype": "F32"}}'), "twice"),
        (raw(b'{"__metadata__": {"a": "1", "a": "1"}}'), "twice"),
        (raw(b'{"w": NaN}'), "damaged JSON"),
        (raw(b'{"w": ' + b"[" * 200_000 + b"}"), "damaged JSON"),
        (raw(b'{"w": ' + b"9" * 10_000 + b"}"), "damaged JSON"),
        (raw(b'{"\xff": 1}'), "damaged JSON"),
        (raw(b'{"w": 1} x'), "damaged JSON"),
        (raw(b'{"\\ud800": 1}'), "damaged JSON"),
    ],
)
def test_lying_headers(write, data, match):
    with pytest.raises(UserError, match=match) as caught:
        open_tensors(write(data))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_honest_oddities(write):
    assert open_tensors(write(raw({}))).tensors == {}
    assert open_tensors(write(raw(b'{"__metadata__": null}   '))).tensors == {}
    several_empty = {
        "a": entry(shape=(0,), place=(0, 0)),
        "b": entry(),
        "c": entry(shape=(0, 9), place=(8, 8)),
    }
    tensors = open_tensors(write(raw(several_empty, bytes(8)))).tensors
    assert [t.read().shape for t in tensors.values()] == [(0,), (2,), (0, 9)]
    # The library pads the header; whoever does not still gets aligned arrays.
    unaligned = open_tensors(
        write(raw(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} ', b"\0\0\x80?"))
    )
    array = unaligned.tensors["w"].read()
    assert array == [1]
    assert array.flags.aligned


numbers = st.one_of(
    st.integers(0, 20),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**62, 2**63, 2**64, 1.0, None, True]),
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from([*DTYPES, "F4", "f32"]), numbers),
        "shape": st.one_of(st.lists(numbers, max_size=3), numbers),
        "data_offsets": st.one_of(st.lists(numbers, min_size=1, max_size=3), numbers),
    }
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]),
    st.one_of(entries, st.dictionaries(st.text(max_size=3), st.text(max_size=3)), numbers),
    max_size=3,
)
fitting = st.lists(
    st.tuples(
        st.sampled_from(["F32", "BF16", "U8", "I64"]), st.lists(st.integers(0, 3), max_size=3)
    ),
    max_size=3,
)
quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def whole(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        array = tensor.read()
        assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)


@quick
@given(header=headers, data=st.binary(max_size=20))
def test_headers_of_any_kind(write, header, data):
    content = raw(header, data)
    try:
        whole(open_tensors(write(content)).tensors)
    except UserError:
        return
    deserialize(content)  # The library must not be stricter.


@quick
@given(specs=fitting, cut=st.integers(-2, 2), flip=st.integers(0, 10**6), by=st.integers(0, 255))
def test_the_library_and_this_reader_agree(write, specs, cut, flip, by):
    """On honest files with one byte changed or some cut off or added."""
    header, offset = {}, 0
    for number, (dtype, shape) in enumerate(specs):
        end = offset + int(np.prod(shape, dtype=int)) * DTYPES[dtype].itemsize
        header[f"w{number}"] = entry(dtype, shape, (offset, end))
        offset = end
    content = bytearray(raw(header, bytes(offset)))
    content[flip % len(content)] ^= by
    content = bytes(content)[: len(content) + min(cut, 0)] + bytes(max(cut, 0))
    try:
        whole(open_tensors(write(content)).tensors)
        ours = True
    except UserError as error:
        if "twice" in str(error):
            return  # The library takes the last of two keys that are the same.
        ours = False
    try:
        kinds = {dict(tensor)["dtype"] for _, tensor in deserialize(content)}
        theirs = kinds <= set(DTYPES)
    except SafetensorError:
        theirs = False
    assert ours == theirs
