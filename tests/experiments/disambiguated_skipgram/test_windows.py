"""The source: which contexts, which targets, and what is refused."""

import numpy as np
import pytest

from clipjax.errors import UserError
from experiments.disambiguated_skipgram.windows import Planted, Windows
from tools import build_word_corpus

SENTENCES = ["3 tigers, bones and state-of-the-art x-rays", "The tiger's café barks", "A violin"]


@pytest.fixture
def corpus(tmp_path):
    """Path of a corpus of two sentences (the third has one word), the second held out, with marked words."""
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    told = build_word_corpus.build(
        tmp_path, text=[tmp_path / "text.txt"], pseudo_words=0, vocabulary=7, held_out=0.0
    )
    assert told["sentences"] == 2
    path = tmp_path / "corpus.npz"
    arrays = dict(np.load(path))
    arrays["held_out"][1] = True
    arrays["part"][-3:] = 0, -1, 1
    np.savez(path, **arrays)
    return path


def test_words_are_prepared_as_the_papers():
    found = [build_word_corpus.words_of(s) for s in SENTENCES]
    assert found[0] == ["tigers", "bones", "state", "art", "rays"]
    assert found[1] == ["tiger", "UNKNOWN", "barks"]
    assert build_word_corpus.words_of("In 1999, 3.5 x 10,000 U.S. items") == [
        *["NUMBER"] * 3,
        "UNKNOWN",
        "items",
    ]


def test_glosses_are_split_where_no_example_is():
    gloss = 'a cat; big; "it ran; it hid"; "so"'
    parts = [part.strip() for part in build_word_corpus._GLOSS.split(gloss)]
    assert parts == ["a cat", "big", '"it ran; it hid"', '"so"']


def test_pseudo_words_are_of_different_files_and_alike_in_frequency():
    counts = {f"{kind}{i}": 100 + 10 * i for kind in "ab" for i in range(9)}
    files = {word: f"noun.{word[0]}" for word in counts}
    pairs = build_word_corpus.choose_pairs(counts, files, 8, least=110, seed=0)
    assert len(pairs) == 8
    assert len({w for pair in pairs for w in pair}) == 16
    for first, second in pairs:
        assert files[first] != files[second]
        assert abs(counts[first] - counts[second]) <= 20
        assert min(counts[first], counts[second]) >= 110


def test_ids_are_ranks(corpus):
    arrays = np.load(corpus)
    words, tokens = arrays["words"], arrays["tokens"]
    assert words[0] == "UNKNOWN"
    assert len(words) == 7
    counts = np.bincount(tokens, minlength=7)[1:]
    assert (np.diff(counts) <= 0).all()
    assert list(arrays["starts"]) == [0, 5, 8]


def test_contexts_are_padded_with_unknown(corpus):
    source = Windows(str(corpus), 7, window=2, grouped=True)
    tokens = np.load(corpus)["tokens"]
    assert len(source) == len(source.train) == 5
    for place, record in enumerate(source[i] for i in range(5)):
        sentence = [0, 0, *tokens[:5], 0, 0]
        context = sentence[place : place + 2] + sentence[place + 3 : place + 5]
        assert record["centre"] == tokens[place]
        np.testing.assert_array_equal(record["context"], context)
        np.testing.assert_array_equal(record["targets"], [w if w > 0 else -1 for w in context])


def test_records_of_pairs_are_the_targets_of_groups():
    pairs, groups = Planted(sentences=10, window=3), Planted(sentences=10, window=3, grouped=True)
    each = [pairs[i] for i in range(len(pairs))]
    assert all(r["targets"].shape == (1,) for r in each)
    flat = [
        (g["centre"], tuple(g["context"]), t)
        for g in (groups[i] for i in range(len(groups)))
        for t in g["targets"][g["targets"] > 0]
    ]
    assert flat == [(r["centre"], tuple(r["context"]), r["targets"][0]) for r in each]


def test_held_out_occurrences_of_pseudo_words(corpus):
    source = Windows(str(corpus), 7, window=2)
    tokens = np.load(corpus)["tokens"]
    np.testing.assert_array_equal(source.part[source.test], [0, 1])
    np.testing.assert_array_equal(source.centre[source.test], tokens[[5, 7]])
    np.testing.assert_array_equal(source.contexts(source.test, whole=True), [tokens[5:]] * 2)
    both = source.contexts(np.r_[source.train[:1], source.test[:1]], whole=True)
    np.testing.assert_array_equal(both, [tokens[:5], [*tokens[5:], -1, -1]])


def test_what_cannot_be_read_is_refused(corpus):
    with pytest.raises(UserError, match="no corpus 'nowhere'"):
        Windows("nowhere", 7)
    with pytest.raises(UserError, match="7 words, but the model 6"):
        Windows(str(corpus), 6)


def test_records_of_several_positions_have_every_position():
    single = Planted(sentences=10, window=3, grouped=True)
    several = Planted(sentences=10, window=3, grouped=True, positions=7)
    assert len(several) == -(-len(single) // 7)
    rows = [several[i] for i in range(len(several))]
    assert [rows[0][k].shape for k in ("centre", "context", "targets")] == [(7,), (7, 6), (7, 6)]
    joined = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    as_set = lambda centre, context, targets: (int(centre), *context.tolist(), *targets.tolist())  # noqa: E731
    found = sorted(map(as_set, *(joined[k] for k in ("centre", "context", "targets"))))
    alone = [single[i] for i in range(len(single))]
    wanted = sorted(as_set(r["centre"], r["context"], r["targets"]) for r in alone)
    spare = len(found) - len(wanted)
    assert 0 <= spare < 7
    for one in wanted:
        found.remove(one)
    assert len(found) == spare
    with pytest.raises(UserError, match="only with grouped=True"):
        Planted(positions=7)
