"""The tokenizer.json reader on small vocabularies."""

import base64
import gzip
import json
import pickle
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.hf_json import HFTokenizer
from clipjax.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[S]": 2, "[E]": 3, "cat": 4, "a": 5, "hat": 9}


def tokenizer_json(path, padding: bool = True) -> None:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[S] $A [E]", special_tokens=[("[S]", 2), ("[E]", 3)]
    )
    tokenizer.enable_truncation(3)  # to be ignored, as is the padded length
    if padding:
        tokenizer.enable_padding(pad_id=0, length=7)
    tokenizer.save(str(path))


@pytest.fixture
def path(tmp_path):
    tokenizer_json(tmp_path / "words.json")
    return tmp_path / "words.json"


def test_encodes_truncates_and_pads(path):
    tokenizer = HFTokenizer(path, length=5)
    assert (tokenizer.length, tokenizer.pad_id, tokenizer.vocab_size) == (5, 0, 10)
    assert tokenizer.encode("A cat a hat a dog") == [2, 5, 4, 5, 9, 5, 1, 3]
    rows = tokenizer(["a Cat", "", "a cat a hat"])
    assert rows.dtype == np.int32
    assert rows.tolist() == [[2, 5, 4, 3, 0], [2, 3, 0, 0, 0], [2, 5, 4, 5, 3]]
    assert tokenizer([]).shape == (0, 5)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again(["a Cat"]).tolist() == rows[:1].tolist()


def test_save_and_load(path, tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    config = HFTokenizer(path, length=6).save(directory)
    old = {"kind": "hf_json", "file": "tokenizer.json", "length": 6, "pad_id": 0}
    new = {"clean": "none", "repair": False, "file_specials": True, "bos_id": None, "eos_id": None}
    assert config == old | new
    assert (directory / "tokenizer.json").read_bytes() == path.read_bytes()
    loaded = HFTokenizer.load(config, directory)
    assert loaded(["a hat"]).tolist() == [[2, 5, 9, 3, 0, 0]]
    assert loaded.save(directory) == config
    assert HFTokenizer.load(old, directory).save(directory) == config  # of an older version
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="another tokenizer's"):
        loaded.save(directory)


def test_padding_token(tmp_path):
    path = tmp_path / "unpadded.json"
    tokenizer_json(path, padding=False)
    with pytest.raises(UserError, match="does not name its padding token"):
        HFTokenizer(path, length=4)
    with pytest.raises(UserError, match="no token with the pad_id 7"):
        HFTokenizer(path, length=4, pad_id=7)
    assert HFTokenizer(path, length=4, pad_id=1)([""]).tolist() == [[2, 3, 1, 1]]


def test_refusals(path, tmp_path):
    with pytest.raises(UserError, match="use at least 3"):
        HFTokenizer(path, length=2)
    with pytest.raises(UserError, match="must be a whole number"):
        HFTokenizer(path, length=4.0)
    with pytest.raises(UserError, match="no token with the eos_id 8"):
        HFTokenizer(path, length=8, eos_id=8)
    with pytest.raises(UserError, match="no token with the bos_id True"):
        HFTokenizer(path, length=8, bos_id=True)
    with pytest.raises(UserError, match="'lower_ascii'"):
        HFTokenizer(path, length=8, clean="upper")
    with pytest.raises(UserError, match="not bytes"):
        HFTokenizer(path, length=8)([b"bytes"])
    with pytest.raises(UserError, match="cannot be read"):
        HFTokenizer(tmp_path / "nowhere.json", length=8)
    for content in (b"{}", b"[]", b"\xff\xfe", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
            HFTokenizer(path, length=8)


def test_special_tokens_of_the_file_and_of_the_config(path):
    def rows(**settings):
        return HFTokenizer(path, length=5, **settings)(["a cat", "a cat a hat a cat"]).tolist()

    assert rows(file_specials=False) == [[5, 4, 0, 0, 0], [5, 4, 5, 9, 5]]
    assert rows(file_specials=False, eos_id=3) == [[5, 4, 3, 0, 0], [5, 4, 5, 9, 3]]
    assert rows(file_specials=False, bos_id=2) == [[2, 5, 4, 0, 0], [2, 5, 4, 5, 9]]
    assert rows(bos_id=9, eos_id=4) == [[9, 2, 5, 3, 4], [9, 2, 5, 3, 4]]
    assert rows(pad_id=3) == [[2, 5, 4, 3, 3], [2, 5, 4, 5, 3]]


def test_a_vocabulary_without_the_unknown(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"x": 0, "<s>": 1}, unk_token="none"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.model = models.BPE({"x": 0, "<s>": 1}, [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <s>", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(tmp_path / "x.json"))
    rows = HFTokenizer(tmp_path / "x.json", length=3, pad_id=0)(["a", "x", "xxx"])
    assert rows.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_cleaning_comes_before_the_file(path):
    texts = ["A_CAT!", "&amp;cat", "a\ud800"]
    assert HFTokenizer(path, 6)(texts).tolist()[0] == [2, 1, 1, 3, 0, 0]
    assert HFTokenizer(path, 6, clean="canonicalize")(texts).tolist() == [
        [2, 5, 4, 3, 0, 0],
        [2, 1, 3, 0, 0, 0],
        [2, 5, 1, 3, 0, 0],
    ]
    repaired = HFTokenizer(path, 6, clean="canonicalize", repair=True)
    assert repaired(texts).tolist()[1] == [2, 4, 3, 0, 0, 0]


@pytest.mark.parametrize("length", [248, 512])
def test_long_texts_are_cut_and_told(path, length):
    (full, part, short), cut_N = HFTokenizer(path, length, pad_id=3).encode_rows(
        ["a cat " * 300, "a " * (length - 2), "a " * (length - 3)]
    )
    assert cut_N.tolist() == [True, False, False]  # the rows end alike, as the padding is [E]
    assert full.tolist() == [2, *[5, 4] * (length // 2 - 1), 3]
    assert part[-1] == short[-1] == short[-2] == 3


@pytest.mark.parametrize("family", ["siglip2", "xlm_r", "bert"])
def test_rows_are_those_of_transformers(family, tmp_path):
    golden = json.loads(gzip.decompress((GOLDEN / "tokenizers.json.gz").read_bytes()))[family]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(base64.b64decode(golden["file"]))
    assert len(golden["texts"]) > 140
    for length, rows in golden["rows"].items():
        tokenizer = make_tokenizer(golden["config"] | {"source": path}, int(length))
        pairs = zip(golden["texts"], tokenizer(golden["texts"]).tolist(), rows, strict=True)
        assert [text for text, own, theirs in pairs if own != theirs] == []
    assert tokenizer.encode_rows(golden["texts"])[1].sum() > 50


@hypothesis.given(st.binary(max_size=200))
def test_no_bytes_are_worse_than_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
            HFTokenizer(path, length=8)


@hypothesis.given(st.text(st.characters(exclude_categories=()), max_size=60), st.integers(3, 9))
def test_any_string_makes_a_row(text, length):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_json(Path(folder) / "words.json")
        tokenizer = HFTokenizer(Path(folder) / "words.json", length)
    (row,), (cut,) = tokenizer.encode_rows([text])
    ids = tokenizer.encode(text)
    assert cut == (len(ids) > length)
    assert row.tolist() == ([*ids[: length - 1], 3] if cut else [*ids, *[0] * (length - len(ids))])


def test_decode_gives_the_text_back(tmp_path):
    tokenizer_json(tmp_path / "tokenizer.json")
    tokenizer = HFTokenizer(tmp_path / "tokenizer.json", length=8)
    assert tokenizer.decode(tokenizer(["A hat a cat"])[0]) == "a hat a cat"
    assert tokenizer.decode(tokenizer.encode("cat " * 20)) == " ".join(["cat"] * 20)
    assert tokenizer.decode(tokenizer(["cat " * 20])[0]) == " ".join(["cat"] * 6)
    with pytest.raises(UserError, match="no id 99"):
        tokenizer.decode([99])
