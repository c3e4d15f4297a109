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

from clipjax.data.tokenizers import clip_bpe
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


@pytest.mark.parametrize("clean", CLEANINGS)
def test_ids_are_those_of_open_clip(golden, clean):
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
def test_rows_are_those_of_open_clip(golden, length):
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
    assert clip_bpe._repair(text) is text
    assert clip_bpe._unescape(ftfy.fix_text(text)) == text


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


def test_words_are_cached_within_bounds():
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
        ({"length": 1}, "length is 1"),
        ({"length": 7.5}, "length is 7.5"),
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
