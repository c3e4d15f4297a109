"""Thousands of damaged files of every kind: refused in one sentence, or read in the shapes that they promise."""

import contextlib
import io
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from clipjax.convert.files import open_sharded, open_tensors, state_dict, write_safetensors
from clipjax.errors import UserError
from tests.convert.torch_bytes import call, name, text

GOLDEN = Path(__file__).parent / "golden" / "files"
MUTATIONS = 300  # of each kind
# The largest file here has 8 KB; deflate at its best, a thousand times its own size, stays far below this.
MEMORY = 24 * 2**20
MARK = "planted"
PLANT = call(name("posix", "mkdir"), text(MARK))
ABSURD = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def npz(save_as) -> bytes:
    stream = io.BytesIO()
    arrays = {"params/img/w": np.arange(60).reshape(3, 20), "params/b": np.ones((2, 3), np.float16)}
    save_as(stream, **arrays)
    return stream.getvalue()


HONEST = {
    **{golden: (GOLDEN / golden).read_bytes() for golden in ("state_dict.pt", "training.pt")},
    **{golden: (GOLDEN / golden).read_bytes() for golden in ("scripted.pt", "legacy.pth")},
    "safetensors": save(
        {"a": np.arange(12.0).reshape(3, 4), "b": np.ones(5, np.float16)}, {"x": "y"}
    ),
    "npz": npz(np.savez),
    "compressed npz": npz(np.savez_compressed),
}
assert max(map(len, HONEST.values())) < 8192


def rebuilt(data: bytes, random: np.random.Generator, change) -> bytes:
    """A zip archive with one of its records changed, and a directory that knows of it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as target:
        names = source.namelist()
        pickles = [entry for entry in names if entry.endswith("data.pkl")] or names
        chosen = pickles[random.integers(len(pickles))]
        for entry in names:
            record = source.read(entry)
            target.writestr(zipfile.ZipInfo(entry), change(record) if entry == chosen else record)
    return stream.getvalue()


def flip(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        changed[random.integers(len(data))] ^= 1 << random.integers(8)
    return bytes(changed)


def flip_ends(data: bytes, random: np.random.Generator) -> bytes:
    """Where headers and directories are."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        place = random.integers(min(len(data), 500))
        changed[place if random.random() < 0.5 else -1 - place] = random.integers(256)
    return bytes(changed)


def truncate(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data))]


def extend(data: bytes, random: np.random.Generator) -> bytes:
    return data + random.bytes(random.integers(1, 200))


def splice(data: bytes, random: np.random.Generator) -> bytes:
    """A piece copied over or into another place."""
    start, to = random.integers(len(data), size=2)
    piece = data[start : start + random.integers(1, 64)]
    return data[:to] + piece + data[to + (len(piece) if random.random() < 0.5 else 0) :]


def absurd(data: bytes, random: np.random.Generator) -> bytes:
    """A length, or what may be one, that cannot be."""
    width, form = [(4, "<I"), (8, "<Q")][random.integers(2)]
    value = ABSURD[random.integers(len(ABSURD))] % 2 ** (8 * width)
    place = random.integers(max(len(data) - width, 1))
    return data[:place] + struct.pack(form, value) + data[place + width :]


def digits(data: bytes, random: np.random.Generator) -> bytes:
    """Other numbers in JSON, in numpy's headers and in names."""
    changed = bytearray(data)
    places = [i for i, byte in enumerate(data) if chr(byte) in "0123456789"]
    for place in random.choice(places, min(len(places), 3)) if places else []:
        changed[place] = ord("0123456789-.,]"[random.integers(14)])
    return bytes(changed)


def names(data: bytes, random: np.random.Generator) -> bytes:
    """One name in place of another."""
    words = [
        b"weight",
        b"bias",
        b"data",
        b"F32",
        b"F16",
        b"FloatStorage",
        b"HalfStorage",
        b"a",
        b"b",
        b"params",
    ]
    words += [
        b"collections",
        b"OrderedDict",
        b"storage",
        b"torch._utils",
        b"state_dict",
        b"_rebuild_tensor_v2",
    ]
    present = [word for word in words if word in data]
    if not present:
        return flip(data, random)
    old, new = present[random.integers(len(present))], words[random.integers(len(words))]
    return data.replace(old, new, 1 if random.random() < 0.7 else -1)


def operations(data: bytes, random: np.random.Generator) -> bytes:
    """A pickle with operations left out, doubled, moved, or a program among them."""
    places, stream = [], io.BytesIO(data)
    with contextlib.suppress(Exception):  # what follows the last pickle is none
        while True:
            places += [place for _, _, place in pickletools.genops(stream)]
    if not places:
        return flip(data, random)
    a, b = np.sort(random.choice(places, 2))
    extra = [
        PLANT,
        b"",
        data[a:b],
        pickle.EMPTY_DICT * 1000,
        b"\x8a\xff" + b"\x7f" * 255,
        pickle.POP,
        pickle.BUILD,
    ]
    piece = extra[random.integers(len(extra))]
    return data[:a] + piece + data[a if random.random() < 0.5 else b :]


MUTATORS = [
    flip,
    flip_ends,
    truncate,
    extend,
    splice,
    absurd,
    digits,
    names,
    operations,
    operations,
]


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    change = MUTATORS[random.integers(len(MUTATORS))]
    if data.startswith(b"PK") and random.random() < 0.7:
        return rebuilt(data, random, lambda record: change(record, random))
    return change(data, random)


def whole(file) -> int:
    """Reads every tensor, and counts them."""
    for key, tensor in file.tensors.items():
        array = tensor.read()
        assert array.shape == tensor.shape, key
        assert array.dtype == tensor.dtype, key
        assert array.flags.c_contiguous, key
        array.tobytes()  # touches every page, so that a view beyond the file would show
    state_dict(file)
    return len(file.tensors)


def attempt(open_file, path: Path) -> str:
    """ "read" or "refused", within the bound of memory; anything else is raised."""
    tracemalloc.start()
    try:
        whole(open_file(path))
        return "read"
    except UserError as error:
        message = str(error)
        assert message.isprintable()
        assert message.endswith(".")
        assert len(message) < 500
        return "refused"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY


@pytest.mark.filterwarnings("ignore")  # what pickletools and numpy find strange in damaged files
@pytest.mark.parametrize("kind", HONEST)
def test_a_damaged_file_is_refused_or_read(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(sum(map(ord, kind)))
    path = Path("x")
    path.write_bytes(HONEST[kind])
    assert attempt(open_tensors, path) == "read"
    outcomes = []
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(HONEST[kind], random))
        outcomes.append(attempt(open_tensors, path))
        assert os.listdir() == ["x"]
    # So the mutations are neither all harmless nor all stopped at the door.
    assert outcomes.count("read") > MUTATIONS // 50
    assert outcomes.count("refused") > MUTATIONS // 4


def test_a_damaged_index_is_refused_or_read(tmp_path):
    x = np.arange(4.0)
    tensors = [(key, x.shape, x.dtype, lambda: x) for key in "abc"]
    *_, index = write_safetensors(tmp_path, tensors, max_shard_bytes=40)
    random = np.random.default_rng(5)
    honest = index.read_bytes()
    assert attempt(open_sharded, index) == "read"
    outcomes = []
    for _ in range(MUTATIONS):
        index.write_bytes(mutate(honest, random))
        outcomes.append(attempt(open_sharded, index))
    assert outcomes.count("refused") > MUTATIONS // 2
