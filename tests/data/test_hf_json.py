"""The tokenizer.json reader on a small vocabulary."""

import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from clipjax.data.tokenizers.hf_json import HFTokenizer
from clipjax.errors import UserError

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
    assert config == {"kind": "hf_json", "file": "tokenizer.json", "length": 6, "pad_id": 0}
    assert (directory / "tokenizer.json").read_bytes() == path.read_bytes()
    loaded = HFTokenizer.load(config, directory)
    assert loaded(["a hat"]).tolist() == [[2, 5, 9, 3, 0, 0]]
    assert loaded.save(directory) == config
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="another tokenizer's"):
        loaded.save(directory)


def test_padding_token(tmp_path):
    path = tmp_path / "unpadded.json"
    tokenizer_json(path, padding=False)
    with pytest.raises(UserError, match="no token with the padding id None"):
        HFTokenizer(path, length=4)
    with pytest.raises(UserError, match="no token with the padding id 7"):
        HFTokenizer(path, length=4, pad_id=7)
    assert HFTokenizer(path, length=4, pad_id=1)([""]).tolist() == [[2, 3, 1, 1]]


def test_refusals(path, tmp_path):
    with pytest.raises(UserError, match="use at least 3"):
        HFTokenizer(path, length=2)
    with pytest.raises(UserError, match="cannot be read"):
        HFTokenizer(tmp_path / "nowhere.json", length=8)
    for content in (b"{}", b"\xff\xfe", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
            HFTokenizer(path, length=8)
