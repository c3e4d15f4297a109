"""The vocabulary of a SentencePiece model as a tokenizer.json, against the package itself."""

import gzip
import io
import json

import pytest
import sentencepiece
from tokenizers import Tokenizer

from clipjax.convert.formats import clip_vocabulary, tokenizer_json
from clipjax.convert.formats.sentencepiece_model import read_model, to_tokenizer_json
from clipjax.data.tokenizers import clip_bpe
from clipjax.data.tokenizers.clean import CLEANINGS, cleaner
from clipjax.errors import UserError
from tests import languages

TEXTS = [text for _, plain, hard in languages.strings() for text in plain[::9] + hard[::5]]
NAMES = json.loads(gzip.decompress(languages.MORE.read_bytes()))["names"]


def train(**settings) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(name for language in ("nl", "sv", "cs") for name in NAMES[language]),
        model_writer=model,
        vocab_size=420,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return model.getvalue()


GEMMA = dict(
    model_type="bpe",
    byte_fallback=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    user_defined_symbols=["<mask>", "▁▁"],
)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        (dict(normalization_rule_name="identity", pad_id=0, eos_id=1, unk_id=2, bos_id=-1), 0),
        # The library normalises whole graphemes: letters with several marks may differ.
        (dict(normalization_rule_name="nmt_nfkc_cf"), 5),
        (dict(byte_fallback=True), 5),
        (dict(model_type="bpe", normalization_rule_name="identity"), 0),
        (GEMMA, 0),
    ],
)
def test_the_same_pieces(settings, most):
    content = train(**settings)
    model, theirs = read_model(content), sentencepiece.SentencePieceProcessor()
    theirs.LoadFromSerializedProto(content)
    assert [text for text, _, _ in model.pieces] == [
        theirs.id_to_piece(i) for i in range(theirs.vocab_size())
    ]
    assert model.unk_id == theirs.unk_id()
    assert [model.bos_id, model.eos_id] == [
        None if i < 0 else i for i in (theirs.bos_id(), theirs.eos_id())
    ]
    assert model.id_of("▁") == theirs.piece_to_id("▁")
    assert model.id_of("no such piece") is None
    ours = Tokenizer.from_str(json.dumps(to_tokenizer_json(model)))
    texts = [*TEXTS, "", " ", "  a   b  ", "a\n b", "x\u00a0y <mask> z"]
    differ = [text for text in texts if ours.encode(text).ids != theirs.encode(text)]
    assert len(differ) <= most
    back = "en gul båt"
    assert ours.decode(ours.encode(back).ids) == back


def test_damaged_models():
    content = train()
    for damaged in (b"", b"nonsense", content[: len(content) // 2], content[:-1]):
        with pytest.raises(UserError, match="SentencePiece model"):
            read_model(damaged)
    with pytest.raises(UserError, match="neither a unigram model"):
        read_model(train(model_type="char"))


def test_clips_vocabulary_is_that_of_the_tokenizer():
    symbols = list(clip_vocabulary.vocabulary())
    assert symbols[:-2] == clip_bpe._vocabulary().symbols[:-2]
    assert symbols[-2:] == ["<|startoftext|>", "<|endoftext|>"]


@pytest.mark.parametrize("clean", CLEANINGS)
def test_cleanings_as_normalizers(clean):
    file = clip_vocabulary.tokenizer_json() | {"normalizer": None}
    made = Tokenizer.from_str(json.dumps(tokenizer_json.with_settings(file, clean)))
    texts = [*TEXTS, "ΑΣ ΟΔΟΣ/Σ ΑΣ'Α", "a_b\x1f c!?", "İI", ""]
    for text in texts:
        found = text if made.normalizer is None else made.normalizer.normalize_str(text)
        assert found == cleaner(clean, False)(text)


def test_a_cleaning_comes_before_the_files_own_steps():
    own = {"type": "Replace", "pattern": {"String": "a"}, "content": "A"}
    for normalizer in (own, {"type": "Sequence", "normalizers": [own]}):
        file = clip_vocabulary.tokenizer_json() | {"normalizer": normalizer}
        made = Tokenizer.from_str(json.dumps(tokenizer_json.with_settings(file, "lower")))
        assert made.normalizer.normalize_str("BAa") == "bAA"
