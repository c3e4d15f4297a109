"""Tokenizers of directories, both ways, against what transformers and open_clip made of them."""

import base64
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from clipjax.convert.formats import clip_vocabulary
from clipjax.convert.formats.open_clip_tokenizer_files import find_open_clip, open_clip_files
from clipjax.convert.formats.tokenizer_files import find_hugging_face, hugging_face_files
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.absent import Absent
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.data.tokenizers.hf_json import HFTokenizer
from clipjax.data.tokenizers.sentencepiece import SentencePiece
from clipjax.errors import UserError
from tests import languages

GOLDENS = Path(languages.__file__).parent / "data" / "golden"


def load(name):
    return json.loads(gzip.decompress((GOLDENS / name).read_bytes()))


GOLDEN = load("tokenizer_files.json.gz")
LENGTH = GOLDEN["length"]
ROOM = 10**6  # ids that the model knows: more than any of these has
WORDS = load("tokenizers.json.gz")


def vocabulary(name) -> bytes:
    if name == "clip":
        return json.dumps(clip_vocabulary.tokenizer_json()).encode()
    return base64.b64decode(WORDS[name]["file"])


def file_of(name) -> str:
    return "spiece.model" if name == "siglip" else "tokenizer.json"


@pytest.fixture
def directory(tmp_path):
    """Makes a directory of a vocabulary and of JSON files."""

    def make(name, **files):
        if name is not None:
            (tmp_path / file_of(name)).write_bytes(vocabulary(name))
        for file, content in files.items():
            (tmp_path / f"{file}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def check_rows(tokenizer, recorded):
    """The rows of the strings that are recorded as they are, and of all languages."""
    kind, rows = recorded["kind"], np.array(recorded["rows"])
    end = clip_vocabulary.vocabulary()[clip_vocabulary.EOT]

    def ours(texts):
        ids = tokenizer(texts)
        # transformers pads CLIP's rows with the end of the text, which a causal tower does not see.
        return np.where((ids == end).cumsum(1) > 0, end, ids) if rows[0, -1] == end else ids

    shown = [text for text in GOLDEN["shown"] if languages.comparable(kind, text)]
    assert len(shown) > 15
    for text, found, wanted in zip(shown, ours(shown).tolist(), rows.tolist(), strict=True):
        assert found == wanted, text
    hashes, count = languages.digests(kind, ours)
    assert count == recorded["strings"] > 7_000
    assert hashes == recorded["languages"]
    assert len(hashes) == 54


@pytest.mark.parametrize("name", [n for n in GOLDEN["read"] if n.startswith("hugging_face")])
def test_directories_of_transformers(name, directory):
    case = GOLDEN["read"][name]
    folder = directory(case["vocabulary"], tokenizer_config=case["tokenizer_config"])
    config = {"model_type": case["model_type"]}
    make, hints = find_hugging_face(folder, case["family"], config, LENGTH, ROOM)
    tokenizer = make()
    check_rows(tokenizer, case)
    # And back, as it came.
    hints = json.loads(json.dumps(hints))
    files = hugging_face_files(tokenizer, case["family"], hints, LENGTH)
    assert files[file_of(case["vocabulary"])] == vocabulary(case["vocabulary"])
    assert json.loads(files["tokenizer_config.json"]) == case["tokenizer_config"]
    assert ("merges.txt" in files) == (case["vocabulary"] == "clip")


@pytest.mark.parametrize("name", [n for n in GOLDEN["read"] if n.startswith("open_clip")])
def test_directories_of_open_clip(name, directory):
    case = GOLDEN["read"][name]
    more = {"tokenizer_config": case["tokenizer_config"]} if case["vocabulary"] else {}
    folder = directory(case["vocabulary"], **more)
    make, hints = find_open_clip(folder, case["text_cfg"], LENGTH, ROOM)
    tokenizer = make()
    check_rows(tokenizer, case)
    added, files = open_clip_files(tokenizer, json.loads(json.dumps(hints)), LENGTH)
    assert added | {"context_length": LENGTH} == case["text_cfg"]
    if case["vocabulary"]:
        assert files[file_of(case["vocabulary"])] == vocabulary(case["vocabulary"])
        assert json.loads(files["tokenizer_config.json"]) == case["tokenizer_config"]
    else:
        assert not files


@pytest.mark.parametrize("name", GOLDEN["written"])
def test_what_is_written_is_what_others_read(name, tmp_path):
    case = GOLDEN["written"][name]
    (tmp_path / "vocabulary").write_bytes(vocabulary(case["vocabulary"] or "bert"))
    source = {"source": str(tmp_path / "vocabulary")} if case["vocabulary"] else {}
    tokenizer = make_tokenizer(case["config"] | source, LENGTH)
    if name.startswith("hugging_face"):
        files = hugging_face_files(tokenizer, case["family"], {}, LENGTH)
    else:
        added, files = open_clip_files(tokenizer, {}, LENGTH)
        assert added == case["text_cfg"]
    hashes = {file: hashlib.sha256(content).hexdigest()[:12] for file, content in files.items()}
    # Where this fails on purpose: python tools/make_tokenizer_goldens.py --directories.
    assert hashes == case["files"]
    check_rows(tokenizer, case)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("siglip2", {"kind": "hf_json", "clean": "lower_ascii", "file_specials": False}),
        ("bert", {"kind": "hf_json", "clean": "canonicalize", "pad_id": 0}),
        ("bert", {"kind": "hf_json", "file_specials": False, "bos_id": 9, "eos_id": 5}),
        ("siglip", {"kind": "sentencepiece", "clean": "none", "eos": "none", "pad_id": 0}),
        ("siglip", {"kind": "sentencepiece", "clean": "lower"}),
    ],
)
def test_settings_are_written_into_the_file(name, config, tmp_path):
    (tmp_path / "vocabulary").write_bytes(vocabulary(name))
    settings = {"source": str(tmp_path / "vocabulary"), "pad_id": 1} | config
    tokenizer = make_tokenizer(settings, 24)
    files = hugging_face_files(tokenizer, "siglip", {}, 24)
    assert "PreTrainedTokenizerFast" in files["tokenizer_config.json"].decode()
    made = Tokenizer.from_str(files["tokenizer.json"].decode())
    made.enable_truncation(24)
    made.enable_padding(length=24, pad_id=tokenizer.pad_id)
    texts = [text for text in GOLDEN["shown"] if "</s>" not in text]
    texts += ["Ψυχή και ΣΊΣΥΦΟΣ ΟΔΟΣ", "ΑΣ-ΑΣ ΟΔΟΣ/Σ ΑΣ'Α", "A_b, (C) d.\tE\x1fÉÀ!", " x  y "]
    for text, row in zip(texts, tokenizer(texts).tolist(), strict=True):
        assert made.encode(text).ids == row, text
    # transformers reads such a file as it is, and so does clipjax.
    folder = tmp_path / "written"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    make, hints = find_hugging_face(folder, "siglip", {"model_type": "siglip"}, 24, ROOM)
    assert (make()(texts) == tokenizer(texts)).all()
    assert hugging_face_files(make(), "siglip", hints, 24) == files


def test_clips_vocabulary_needs_no_file(tmp_path):
    for folder in (None, tmp_path):
        make, _ = find_hugging_face(folder, "clip", {"model_type": "clip"}, 32, 49_408)
        assert make() == ClipBPE(32)
        make, _ = find_open_clip(
            folder, {"tokenizer_kwargs": {"clean": "canonicalize"}}, 16, 49_408
        )
        assert make() == ClipBPE(16, "canonicalize")
        assert find_hugging_face(folder, "clip", {}, 32, 1_000)[0] is None
        assert find_hugging_face(folder, "siglip", {}, 32, 49_408)[0] is None
        assert find_open_clip(folder, {}, 32, 1_000)[0] is None
    for name, content in hugging_face_files(ClipBPE(32), "clip", {}, 32).items():
        if name in ("vocab.json", "merges.txt"):
            (tmp_path / name).write_bytes(content)
    make, hints = find_hugging_face(tmp_path, "clip", {"model_type": "clip"}, 32, 49_408)
    assert make() == ClipBPE(32)
    assert hints == {}
    (tmp_path / "vocab.json").write_text('{"a": 0}')  # another one's
    assert find_hugging_face(tmp_path, "clip", {}, 32, 49_408)[0] is None


def test_clips_files_are_its_vocabulary():
    files = hugging_face_files(ClipBPE(32), "clip", {}, 32)
    symbols = json.loads(files["vocab.json"])
    assert len(symbols) == 49_408
    assert symbols["<|endoftext|>"] == 49_407
    for word in ("photo", "café", "北"):
        made = Tokenizer.from_str(files["tokenizer.json"].decode())
        assert made.encode(word).ids == ClipBPE(32).encode(word)
    assert files["merges.txt"].decode().splitlines()[:2] == ["#version: 0.2", "i n"]
    config = json.loads(files["tokenizer_config.json"])
    assert (config["tokenizer_class"], config["pad_token"]) == ("CLIPTokenizer", "<|endoftext|>")
    # A tower that sees the padding needs that of training, whose id is 0.
    config = json.loads(hugging_face_files(ClipBPE(32), "siglip", {}, 32)["tokenizer_config.json"])
    assert symbols[config["pad_token"]["content"]] == 0
    assert config["model_input_names"] == ["input_ids"]


def test_hints_of_another_tokenizer_are_not_written(directory, tmp_path):
    cased = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "name": "of old"}
    folder = directory("bert", tokenizer_config=cased)
    make, hints = find_hugging_face(folder, "bert", {"model_type": "bert"}, 16, ROOM)
    assert b"of old" in hugging_face_files(make(), "bert", hints, 16)["tokenizer_config.json"]
    for other in (
        HFTokenizer(tmp_path / "tokenizer.json", 16, pad_id=3),
        HFTokenizer(tmp_path / "tokenizer.json", 16, pad_id=0, clean="lower"),
        ClipBPE(16),
    ):
        written = hugging_face_files(other, "bert", hints, 16)["tokenizer_config.json"]
        assert b"of old" not in written


def test_what_pads(directory):
    def pad_id(**files):
        return find_hugging_face(directory("bert", **files), "bert", {}, 16, ROOM)[0]().pad_id

    assert pad_id() == 0  # BERT's
    assert pad_id(tokenizer_config={"pad_token": "[MASK]"}) == 4
    assert pad_id(tokenizer_config={"pad_token": {"content": "[SEP]", "lstrip": False}}) == 3
    old = dict(special_tokens_map={"pad_token": "[UNK]"})
    assert pad_id(tokenizer_config={"pad_token": "[MASK]"}, **old) == 1
    new = {"pad_token": "[MASK]", "added_tokens_decoder": {}}
    assert pad_id(tokenizer_config=new, **old) == 4


def test_gemmas_own_file_gets_the_end_of_a_text(directory):
    """Its file begins texts with <bos>, and SigLIP 2 was trained with <eos> at their ends."""
    file = json.loads(vocabulary("siglip2"))
    token = {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}
    template = [
        {"SpecialToken": {"id": "<bos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": token},
    }

    def ids(text, **files):
        folder = directory(None, tokenizer=file, **files)
        make, _ = find_hugging_face(folder, "siglip2", {"model_type": "siglip"}, 16, ROOM)
        return make().encode(text)

    own = ids("a cat")
    assert own[0] != 2
    assert own[-1] == 1
    assert own == ids("A Cat")
    gemma = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
    assert ids("A Cat", tokenizer_config=gemma) == own
    assert ids("a cat", tokenizer_config={"tokenizer_class": "GemmaTokenizer"}) == [2, *own[:-1]]


def test_the_model_of_siglip_is_preferred(directory, tmp_path):
    folder = directory("siglip", tokenizer=json.loads(vocabulary("bert")))
    assert isinstance(find_hugging_face(folder, "siglip", {}, 16, ROOM)[0](), SentencePiece)
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    folder = directory("siglip", tokenizer_config=plain)
    assert isinstance(find_hugging_face(folder, "siglip", {}, 16, ROOM)[0](), HFTokenizer)
    (tmp_path / "spiece.model").unlink()
    folder = directory(None, tokenizer_config={"tokenizer_class": "SiglipTokenizer"})
    (tmp_path / "tokenizer.json").unlink()
    assert find_hugging_face(folder, "siglip", {}, 16, ROOM)[0] is None


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("bert", {"padding_side": "left"}, "padding_side = 'left'"),
        ("siglip", {"do_lower_case": False}, "do_lower_case = false"),
    ],
)
def test_what_clipjax_does_not_do_is_refused(family, config, message, directory):
    folder = directory(family, tokenizer_config=config)
    make, _ = find_hugging_face(folder, family, {}, 16, ROOM)
    with pytest.raises(UserError, match=message):
        make()


def test_more_ids_than_the_model_knows_are_refused(directory):
    make, _ = find_hugging_face(directory("bert"), "bert", {}, 16, 100)
    with pytest.raises(UserError, match="but the model knows 100"):
        make()
    (directory("bert") / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        find_hugging_face(directory(None), "bert", {}, 16, ROOM)[0]()


@pytest.mark.parametrize(
    ("text_cfg", "message"),
    [
        ({"tokenizer_kwargs": {"language": "deu"}}, "'language' is not supported"),
        ({"tokenizer_mode": "clips"}, "'tokenizer_mode' is not supported"),
        ({"tokenizer_kwargs": {"clean": "upper"}}, "clean 'upper' is not supported"),
    ],
)
def test_settings_of_open_clip_that_are_refused(text_cfg, message, directory):
    make, _ = find_open_clip(directory("bert"), {"hf_tokenizer_name": "x"} | text_cfg, 16, ROOM)
    with pytest.raises(UserError, match=message):
        make()


def test_open_clip_without_files(tmp_path):
    named = {
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
    }
    make, hints = find_open_clip(tmp_path, named, 16, ROOM)
    assert make is None
    # What a user's own tokenizer becomes, CLIP's for one.
    assert open_clip_files(ClipBPE(16, "whitespace"), hints, 16) == (
        {"tokenizer_kwargs": {"clean": "whitespace"}},
        {},
    )
    assert open_clip_files(Absent(16, 9), hints, 16) == (named, {})
    masked = {"tokenizer_kwargs": {"reduction_mask": "simple"}}
    make, hints = find_open_clip(None, masked, 16, 49_408)
    assert open_clip_files(make(), hints, 16) == (masked, {})


def test_what_cannot_be_written_is_refused(directory):
    folder = directory("bert")
    (folder / "model").write_bytes(vocabulary("siglip"))
    bert = HFTokenizer(folder / "tokenizer.json", 16, pad_id=0, bos_id=5)
    with pytest.raises(UserError, match="set file_specials=False"):
        hugging_face_files(bert, "bert", {}, 16)
    lost = SentencePiece(folder / "model", 16, eos="yes")
    with pytest.raises(UserError, match="choose eos='sticky' or 'none'"):
        hugging_face_files(lost, "siglip", {}, 16)
    for tokenizer in (ClipBPE(16), HFTokenizer(folder / "tokenizer.json", 16, pad_id=0)):
        with pytest.raises(UserError, match="Gemma's"):
            hugging_face_files(tokenizer, "siglip2", {}, 16)
    assert hugging_face_files(Absent(16, 9), "clip", {}, 16) == {}

    class Own(Absent):
        def save(self, directory):
            return {"kind": "package:Own"}

    with pytest.raises(UserError, match="'package:Own' cannot be written"):
        hugging_face_files(Own(16, 9), "clip", {}, 16)
