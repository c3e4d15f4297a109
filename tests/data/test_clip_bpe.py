import concurrent.futures
import gzip
import itertools
import json
import pathlib
import pickle

import ftfy
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from clipjax.data.tokenizers import clean as cleaning
from clipjax.data.tokenizers import clip_bpe, fast_bpe
from clipjax.data.tokenizers.clip_bpe import EOT, SOT, ClipBPE
from clipjax.errors import UserError

CLEANINGS = ("lower", "whitespace", "canonicalize")
# Any str: hypothesis leaves lone surrogates out unless they are asked for.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
# The same, thick with what the steps of cleaning look for.
TRICKY_TEXT = st.lists(
    st.one_of(
        st.sampled_from(" \n\u3000\u2028\xa0\x85\0\x1b\u200d\u202e\ufeff"),
        st.sampled_from("aZÉ\u0301İſΣﬁＡ漢ب🚀\ud83d\ude007½_’“'-&#;<>"),
        st.sampled_from(["&amp;", "&lt;", "&#39;", "&#x1F600;", "&#xD800;", "âœ”", "Ã¨", "</w>"]),
        st.sampled_from(["<end_of_text>", "<START_OF_TEXT>", "'s", "'RE", "dog", "e\u0301"]),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def golden():
    path = pathlib.Path(__file__).parent / "golden" / "clip_bpe.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(params=["package", "own"])
def way(request, monkeypatch):
    """Both ways to the ids: with instant-clip-tokenizer and without it."""
    if request.param == "own":
        monkeypatch.setattr(fast_bpe, "encoder", lambda: None)
    elif fast_bpe.encoder() is None:
        pytest.skip("instant-clip-tokenizer is not installed")
    return request.param


needs_package = pytest.mark.skipif(
    fast_bpe.encoder() is None, reason="instant-clip-tokenizer is not installed"
)


@pytest.mark.parametrize("clean", CLEANINGS)
def test_ids_are_those_of_open_clip(golden, clean, way):
    assert golden["versions"]["open_clip_torch"] == "3.3.0"
    assert len(golden["texts"]) > 2_000
    tokenizer = ClipBPE(clean=clean)
    wrong = []
    for text, ids, lower in zip(
        golden["texts"], golden["ids"][clean], golden["ids"]["lower"], strict=True
    ):
        if tokenizer.encode(text) != [SOT, *(lower if ids is None else ids), EOT]:
            wrong.append(text)
    assert wrong == []


@pytest.mark.parametrize("length", [77, 16, 2])
def test_rows_are_those_of_open_clip(golden, length, way):
    rows = golden["rows"][str(length)]
    assert any(row[-1] == EOT for row in rows)  # some are cut
    ids_BxL = ClipBPE(length=length)(golden["texts"][: len(rows)])
    np.testing.assert_array_equal(ids_BxL, rows)


def test_the_cleanings_differ(golden):
    for clean in CLEANINGS[1:]:
        assert sum(ids is not None for ids in golden["ids"][clean]) > 100


def test_merges_only_join_what_earlier_merges_made():
    # The queue of `_Vocabulary.merge` is equal to pair-by-pair merging on this condition.
    vocabulary = clip_bpe._vocabulary()
    assert len(vocabulary.symbols) == len(set(vocabulary.symbols)) == ClipBPE.vocab_size
    assert len(vocabulary.merge_ids) == 48_894
    for (left, right), merged in vocabulary.merge_ids.items():
        assert max(left, right) < merged
        assert vocabulary.symbols[left] + vocabulary.symbols[right] == vocabulary.symbols[merged]


@needs_package
def test_the_package_is_equal_on_every_character_that_it_is_given():
    fast, checked, unequal = fast_bpe.encoder(), 0, []
    for first, last in fast_bpe.known_ranges():
        for letter in map(chr, range(first, last + 1)):
            # What is told apart: letters, digits, the rest, space, upper case, what case hides.
            text = f"x{letter}{letter}!{letter}'{letter}"
            if fast_bpe.takes(text):
                checked += 1
                if clip_bpe._encode(text)[1:-1] != fast.encode(text):
                    unequal.append(letter)
    assert unequal == []
    assert checked > 77_000


@needs_package
def test_the_package_is_equal_on_every_merge():
    fast, unequal = fast_bpe.encoder(), []
    letter_bytes = clip_bpe._vocabulary().letter_bytes
    for symbol in clip_bpe._vocabulary().symbols[512:-2]:
        letters = symbol.removesuffix("</w>")
        text = bytes(map(letter_bytes.__getitem__, letters)).decode("utf-8", "ignore")
        if fast.encode(text) != clip_bpe._encode(text.lower())[1:-1]:
            unequal.append(text)
    assert unequal == []


@needs_package
@pytest.mark.parametrize("length", [2, 8, 77, 248])
def test_rows_are_equal_both_ways(golden, length, monkeypatch):
    texts = golden["texts"]
    assert sum(fast_bpe.takes(ClipBPE().cleaned(text)) for text in texts) > 1_500
    for clean in CLEANINGS:
        ids_BxL, cut_B = ClipBPE(length, clean).encode_rows(texts)
        with monkeypatch.context() as patch:
            patch.setattr(fast_bpe, "encoder", lambda: None)
            own_BxL, own_B = ClipBPE(length, clean).encode_rows(texts)
        np.testing.assert_array_equal(ids_BxL, own_BxL)
        np.testing.assert_array_equal(cut_B, own_B)


@hypothesis.given(st.one_of(ANY_TEXT, TRICKY_TEXT), st.sampled_from(CLEANINGS))
def test_ids_are_equal_both_ways(text, clean):
    tokenizer = ClipBPE(20, clean)
    ids = clip_bpe._encode(tokenizer.cleaned(text))
    assert tokenizer.encode(text) == ids
    ids_BxL, cut_B = tokenizer.encode_rows([text, "a", text])
    for row in (0, 2):
        assert ids_BxL[row].tolist()[: len(ids)] == [*ids[:19], EOT][: len(ids)]
        assert cut_B[row] == (len(ids) > 20)


@pytest.mark.parametrize(
    "text",
    [
        "Cat",
        "it'\u017f",
        "a\u0345",
        "\U00020000",
        "\u0378",
        "x" * 513,
        "a " + "b" * 513,
        "\U0001d6a6",
    ],
)
def test_texts_that_are_not_for_the_package(text):
    assert not fast_bpe.takes(text)


def test_texts_that_are_for_the_package():
    assert fast_bpe.takes("")
    assert fast_bpe.takes("a cat's <end_of_text> \x00\x1b 7½ straße 漢字 γάτας 🐈")
    assert fast_bpe.takes("cat " * 1_000)


def test_another_version_of_the_package_is_not_used(monkeypatch):
    monkeypatch.setattr(fast_bpe, "_VERSION", "0.1.2")
    assert fast_bpe.encoder.__wrapped__() is None


def test_a_newer_unicode_leaves_ascii_to_the_package(monkeypatch):
    monkeypatch.setattr(fast_bpe.unicodedata, "unidata_version", "99.0.0")
    assert fast_bpe.known_ranges() == [(0, 0x7F)]


def test_threads_get_the_ids_of_one_thread(golden, way):
    tokenizer, texts = ClipBPE(), golden["texts"][:400]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for ids_BxL in pool.map(tokenizer, [texts] * 8):
            np.testing.assert_array_equal(ids_BxL, tokenizer(texts))


def test_cut_texts_are_told(way):
    tokenizer = ClipBPE(4)
    ids_BxL, cut_B = tokenizer.encode_rows(["a cat", "a big cat", "", "a Ｂig cat", "!!!!!!!"])
    assert cut_B.tolist() == [False, True, False, True, False]
    assert cut_B.dtype == bool
    assert ids_BxL[:, -1].tolist() == [EOT, EOT, 0, EOT, 0]
    assert [a.shape for a in tokenizer.encode_rows([])] == [(0, 4), (0,)]


@pytest.mark.parametrize("length", [248, 512, 1_024])
def test_long_texts(length, way):
    text = " ".join(["a photo of a cat"] * 300)
    (row,), (cut,) = ClipBPE(length).encode_rows([text])
    assert cut
    assert row.tolist() == [*ClipBPE().encode(text)[: length - 1], EOT]
    assert not ClipBPE(1_600).encode_rows([text])[1].any()


def merge_pair_by_pair(word: bytes) -> list[int]:
    """The textbook algorithm: join every occurrence of the best pair, then look again."""
    vocabulary = clip_bpe._vocabulary()
    ids = [vocabulary.byte_ids[byte] for byte in word]
    ids[-1] += 256
    while best := min(
        (vocabulary.merge_ids[p] for p in itertools.pairwise(ids) if p in vocabulary.merge_ids),
        default=None,
    ):
        joined = []
        for i in ids:
            if joined and vocabulary.merge_ids.get((joined[-1], i)) == best:
                joined[-1] = best
            else:
                joined.append(i)
        ids = joined
    return ids


@hypothesis.given(
    st.one_of(
        st.binary(min_size=1, max_size=60),
        st.text("aeinorst", min_size=1, max_size=80).map(str.encode),
        st.sampled_from([b"a" * 101, b"ab" * 64, b"!" * 77, b"hahaha" * 20]),
    )
)
def test_merging_by_queue_is_merging_pair_by_pair(word):
    assert list(clip_bpe._vocabulary().merge(word)) == merge_pair_by_pair(word)


@hypothesis.given(st.one_of(ANY_TEXT, TRICKY_TEXT), st.sampled_from(CLEANINGS), st.integers(2, 20))
def test_any_string_makes_a_row(text, clean, length):
    tokenizer = ClipBPE(length, clean)
    ids = tokenizer.encode(text)
    assert ids[0] == SOT
    assert ids[-1] == EOT
    ids_BxL = tokenizer([text, "a"])
    assert ids_BxL.shape == (2, length)
    assert ids_BxL.dtype == np.int32
    row = ids_BxL[0].tolist()
    if len(ids) <= length:
        assert row == ids + [tokenizer.pad_id] * (length - len(ids))
    else:
        assert row == [*ids[: length - 1], EOT]


@hypothesis.given(st.one_of(ANY_TEXT, TRICKY_TEXT), st.sampled_from(CLEANINGS))
def test_decode_gives_the_cleaned_text_back(text, clean):
    tokenizer = ClipBPE(200_000, clean)
    cleaned = tokenizer.cleaned(text)
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    words = clip_bpe._WORD.findall(cleaned)
    hypothesis.assume(words[:1] != ["<start_of_text>"] and "</w>" not in cleaned)
    # Words are all that is kept, and between them is a space, save after special tokens.
    assert decoded.replace(" ", "") == "".join(words) == cleaned.replace(" ", "")
    if not {"<start_of_text>", "<end_of_text>"} & set(words):
        assert decoded == " ".join(words)
    assert tokenizer.decode([*ids, 0, 0, 0]) == decoded


@hypothesis.given(ANY_TEXT.filter(lambda text: "&" not in text))
def test_the_short_cut_for_ascii_changes_nothing(text):
    text = "".join(c for c in text if " " <= c <= "~") + 'it\'s "so" -- (c) <b> `x` ...'
    assert cleaning.fix(text) is text
    assert cleaning.unescape(ftfy.fix_text(text)) == text


def test_lone_surrogates_are_replaced():
    tokenizer = ClipBPE()
    assert tokenizer.cleaned("a\ud800b") == "a\ufffdb"
    assert tokenizer.cleaned("\ud83d\ude00") == "😀"


@pytest.mark.parametrize(
    ("reference", "character"),
    [("9" * 5_000, "\ufffd"), ("0" * 5_000 + "65", "A"), ("0" * 5_000, "\ufffd")],
)
def test_numbers_too_long_for_int_are_read(reference, character):
    text = f"x&#{reference};y&lt;&amp;lt;"
    assert ClipBPE(clean="whitespace").cleaned(text) == f"x{character}y<<"


def test_a_sentence_in_full():
    tokenizer = ClipBPE(length=10)
    row = [49406, 320, 1125, 539, 320, 2368, 49407, 0, 0, 0]  # as in every CLIP notebook
    np.testing.assert_array_equal(tokenizer(["A  photo of\ta cat"]), [row])
    np.testing.assert_array_equal(tokenizer("a photo of a cat"), [row])  # one str is one text
    assert tokenizer.decode(row) == "a photo of a cat"
    assert tokenizer([]).shape == (0, 10)
    assert tokenizer.encode("") == [SOT, EOT]


def test_words_are_cached_within_bounds(monkeypatch):
    monkeypatch.setattr(fast_bpe, "encoder", lambda: None)
    cache = clip_bpe._cached_word_ids
    assert cache.cache_info().maxsize == 65_536
    before = cache.cache_info().currsize
    ClipBPE().encode("q" * 1_000)
    assert cache.cache_info().currsize == before  # a long word is not kept


def test_save_load_and_pickle_keep_it(tmp_path):
    tokenizer = ClipBPE(length=32, clean="canonicalize")
    config = json.loads(json.dumps(tokenizer.save(tmp_path)))
    assert config["kind"] == "clip_bpe"
    for other in (ClipBPE.load(config, tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other == tokenizer
        np.testing.assert_array_equal(other(["It's_me!"]), tokenizer(["its me"]))
    assert len(pickle.dumps(tokenizer)) < 300


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clean": "upper"}, "'canonicalize'"),
        ({"length": 1}, "length of 1 leaves no room .* use at least 2"),
        ({"length": 7.5}, "whole number, not 7.5"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ClipBPE(**settings)


def test_wrong_input_is_refused():
    with pytest.raises(UserError, match="not bytes"):
        ClipBPE()([b"bytes"])
    with pytest.raises(UserError, match="id 49408"):
        ClipBPE().decode([49_408])
    with pytest.raises(UserError, match="id -1"):
        ClipBPE().decode([-1])
