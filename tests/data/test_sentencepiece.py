"""SentencePiece models: rows of SigLIP and its relatives, and the cleanings that all kinds share."""

import base64
import contextlib
import gzip
import io
import json
import pickle
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from clipjax.checkpoint import pack_tokenizer, unpack_tokenizer
from clipjax.data import drawings
from clipjax.data.tokenizers import clean, make_tokenizer
from clipjax.data.tokenizers.sentencepiece import SentencePiece
from clipjax.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece")

GOLDEN = Path(__file__).parent / "golden" / "tokenizers.json.gz"
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


def train(**ids) -> bytes:
    """A model of the drawings' names with the C4 model's normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=map(" ".join, drawings._names("en")),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        num_threads=1,
        **ids,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model with the ids of the C4 model: <pad> 0, </s> 1, <unk> 2, no <s>."""
    path = tmp_path_factory.mktemp("models") / "names.model"
    path.write_bytes(train(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    return path


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory):
    """A model with the ids of Gemma's: <pad> 0, <eos> 1, <bos> 2, <unk> 3."""
    path = tmp_path_factory.mktemp("models") / "gemma.model"
    path.write_bytes(train(pad_id=0, eos_id=1, bos_id=2, unk_id=3))
    return path


@pytest.fixture(scope="module")
def processor(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_rows_are_those_of_transformers(tmp_path):
    golden = json.loads(gzip.decompress(GOLDEN.read_bytes()))["siglip"]
    path = tmp_path / "spiece.model"
    path.write_bytes(base64.b64decode(golden["file"]))
    assert golden["config"] == {"kind": "sentencepiece"}  # SigLIP is the default
    assert len(golden["texts"]) > 130
    for length, rows in golden["rows"].items():
        tokenizer = make_tokenizer(golden["config"] | {"source": str(path)}, int(length))
        pairs = zip(golden["texts"], tokenizer(golden["texts"]).tolist(), rows, strict=True)
        assert [text for text, own, theirs in pairs if own != theirs] == []
    assert tokenizer.encode_rows(golden["texts"])[1].sum() > 50


def test_ids_are_those_of_the_package(path, processor):
    tokenizer = SentencePiece(path, 64, clean="none")
    for text in (
        "dog face",
        "A Dog, running!",
        "",
        " ",
        "ﬁne ｆｕｌｌ",
        "</s> <pad>",
        "x\0y",
        "犬",
    ):
        assert tokenizer.encode(text) == [*processor.encode(text), 1]
    assert tokenizer.vocab_size == processor.vocab_size()


@pytest.mark.parametrize(
    ("eos", "pad_id", "rows"),
    [  # The four cases in the documentation of big_vision's `tokenize`, with one more id.
        ("none", 0, [[2, 0, 0], [2, 2, 0], [2, 2, 2], [2, 2, 2]]),
        ("yes", 0, [[2, 1, 0], [2, 2, 1], [2, 2, 2], [2, 2, 2]]),
        ("sticky", 0, [[2, 1, 0], [2, 2, 1], [2, 2, 1], [2, 2, 1]]),
        ("sticky", 1, [[2, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 1]]),
        ("sticky", None, [[2, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 1]]),
    ],
)
def test_end_of_text_and_padding_are_those_of_big_vision(path, monkeypatch, eos, pad_id, rows):
    tokenizer = SentencePiece(path, 3, eos=eos, pad_id=pad_id)
    monkeypatch.setattr(tokenizer, "_ids", lambda texts: [[2] * len(text) for text in texts])
    texts = ["a", "aa", "aaa", "aaaa"]
    ids_NxL, cut_N = tokenizer.encode_rows(texts)
    assert ids_NxL.tolist() == rows
    assert ids_NxL.dtype == np.int32
    assert cut_N.tolist() == [len(tokenizer.encode(text)) > 3 for text in texts]
    assert cut_N.tolist() == [False, False, eos != "none", True]


def test_begin_of_text(gemma_like):
    config = {"kind": "sentencepiece", "source": gemma_like, "clean": "lower_ascii", "pad_id": 0}
    plain, begun = (make_tokenizer(config | {"bos": bos}, 6) for bos in (False, True))
    ids = plain.encode("Cat")
    assert begun.encode("cat") == [2, *ids]
    assert plain("cat")[0].tolist() == (ids + [0] * 6)[:6]
    assert begun(["cat and dog and bird"])[0].tolist()[:1] == [2]
    assert begun(["cat and dog and bird"])[0].tolist()[-1:] == [1]


@pytest.mark.parametrize("length", [248, 512])
def test_long_texts_are_cut_and_told(path, length):
    tokenizer = SentencePiece(path, length)
    texts = ["red apple " * 300, "red apple", ""]
    ids_NxL, cut_N = tokenizer.encode_rows(texts)
    assert ids_NxL.shape == (3, length)
    assert cut_N.tolist() == [True, False, False]
    assert ids_NxL[:, -1].tolist() == [1, 1, 1]  # so the last id does not tell
    assert ids_NxL[0].tolist() == [*tokenizer.encode(texts[0])[: length - 1], 1]


def test_checkpoints_and_pickles_carry_it(path):
    tokenizer = SentencePiece(path, 12, clean="lower", repair=True, eos="yes", pad_id=0)
    packed = json.loads(json.dumps(pack_tokenizer(tokenizer)))
    assert base64.b64decode(packed["files"]["sentencepiece.model"]) == path.read_bytes()
    for other in (unpack_tokenizer(packed), pickle.loads(pickle.dumps(tokenizer))):
        assert (other.length, other.pad_id, other.vocab_size) == (12, 0, tokenizer.vocab_size)
        texts = ["Dog &amp; CAT", "apple " * 9]
        np.testing.assert_array_equal(other(texts), tokenizer(texts))
        assert pack_tokenizer(other) == packed
    assert len(pickle.dumps(tokenizer)) < path.stat().st_size + 2_000


def test_another_model_is_not_overwritten(path, gemma_like, tmp_path):
    SentencePiece(path, 8).save(tmp_path)
    with pytest.raises(UserError, match="another tokenizer's"):
        SentencePiece(gemma_like, 8).save(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "use at least 2"),
        ({"length": "8"}, "whole number, not '8'"),
        ({"clean": "upper"}, "'canonicalize'"),
        ({"eos": "maybe"}, "'sticky'"),
        ({"bos": True}, "set bos=False"),
        ({"pad_id": 5_000}, "no token with the pad_id 5000"),
        ({"pad_id": False}, "no token with the pad_id False"),
        ({"source": "nowhere.model"}, "cannot be read"),
        ({"source": __file__}, "is not a SentencePiece model"),
    ],
)
def test_wrong_settings_are_refused(path, settings, message):
    with pytest.raises(UserError, match=message):
        SentencePiece(**{"source": path, "length": 8} | settings)


def test_a_model_without_end_of_text(tmp_path):
    path = tmp_path / "no_end.model"
    path.write_bytes(train(pad_id=-1, eos_id=-1, bos_id=-1, unk_id=0))
    with pytest.raises(UserError, match="set eos='none' and pad_id"):
        SentencePiece(path, 8)
    with pytest.raises(UserError, match="no end-of-text token to pad with"):
        SentencePiece(path, 8, eos="none")
    assert SentencePiece(path, 1, eos="none", pad_id=0)("").tolist() == [[0]]


def test_wrong_input_is_refused(path):
    with pytest.raises(UserError, match="not bytes"):
        SentencePiece(path, 8)([b"bytes"])
    with pytest.raises(UserError, match=r"no setting 'bso' .*'bos'"):
        make_tokenizer({"kind": "sentencepiece", "source": path, "bso": True}, 8)


def test_the_missing_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"pip install 'clipjax\[sentencepiece\]'"):
        SentencePiece(path, 8)


@hypothesis.given(
    st.one_of(ANY_TEXT, ANY_TEXT.map(lambda text: f"&amp; {text}")),
    st.sampled_from(sorted(clean.CLEANINGS)),
    st.booleans(),
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_string_makes_a_row(path, text, cleaning, repair):
    tokenizer = _cached(path, cleaning, repair)
    (row,), (cut,) = tokenizer.encode_rows([text])
    ids = tokenizer.encode(text)
    assert ids[-1] == 1
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert row.tolist() == ([*ids[:5], 1] if cut else (ids + [1] * 6)[:6])
    assert cut == (len(ids) > 6)


_tokenizers = {}


def _cached(path, cleaning, repair):
    key = (path, cleaning, repair)
    if key not in _tokenizers:
        _tokenizers[key] = SentencePiece(path, 6, clean=cleaning, repair=repair)
    return _tokenizers[key]


@hypothesis.given(st.data())
def test_no_bytes_are_worse_than_refused(path, data):
    model = path.read_bytes()
    content = data.draw(
        st.one_of(
            st.binary(max_size=300),
            st.integers(0, len(model) - 1).map(lambda end: model[:end]),
            st.tuples(st.integers(0, 2_000), st.binary(min_size=1, max_size=4)).map(
                lambda change: model[: change[0]] + change[1] + model[change[0] + 1 :]
            ),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "broken.model"
        broken.write_bytes(content)
        with contextlib.suppress(UserError):
            SentencePiece(broken, 8, pad_id=0)("a cat")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [  # The first five are big_vision's own examples.
        ("test_test", "test test"),
        ("test___test", "test test"),
        ("test", "test"),
        ("test.", "test"),
        (" test ", "test"),
        ("An Apple, isn't IT?\n", "an apple isnt it"),
        ("Zürich – “ÜBER”", "zürich – “über”"),
        ("ΑΣ-ΑΣ", "ασας"),  # punctuation goes first, so this sigma ends no word
        ("\ud800a", "\ufffda"),
        ("!?", ""),
    ],
)
def test_canonicalize_is_that_of_big_vision(text, canonical):
    assert clean.cleaner("canonicalize", False)(text) == canonical


def test_cleanings():
    text = "  ÀB &lt;\tΣ\ud83d\ude00\ud800 "
    assert clean.cleaner("none", False)(text) == "  ÀB &lt;\tΣ😀\ufffd "
    assert clean.cleaner("none", True)(text) == "ÀB < Σ😀\ufffd"
    assert clean.cleaner("lower", False)(text) == "  àb &lt;\tσ😀\ufffd "
    assert clean.cleaner("lower_ascii", False)(text) == "  Àb &lt;\tΣ😀\ufffd "
    assert clean.cleaner("lower_ascii", False)("ABC z") == "abc z"
    assert clean.cleaner("canonicalize", True)(text) == "àb σ😀\ufffd"


@hypothesis.given(ANY_TEXT, st.sampled_from(sorted(clean.CLEANINGS)), st.booleans())
def test_every_cleaned_text_is_utf8(text, cleaning, repair):
    clean.cleaner(cleaning, repair)(text).encode("utf-8")
