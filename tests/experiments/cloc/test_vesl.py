"""The steps of VESL: phrases, captions, assignment, the detector that knows the truth, and how labels are scored."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.experiments.cloc import tiny_vesl
from tests.tiny_images import jpeg, noise

pytest.importorskip("textblob")

from clipjax.data.bad import BadRecord
from clipjax.data.scenes import Scenes
from clipjax.errors import UserError
from experiments.cloc.score_phrases import by_hand
from experiments.cloc.vesl.assign import Detections, regions
from experiments.cloc.vesl.captioners import FieldCaptioner, FileCaptioner
from experiments.cloc.vesl.example import Example
from experiments.cloc.vesl.label import Labeller
from experiments.cloc.vesl.meaning import Meaning
from experiments.cloc.vesl.owlv2 import OwlV2, to_image
from experiments.cloc.vesl.phrases import chunks, noun_phrases, queries
from experiments.cloc.vesl.score import iou, score
from experiments.cloc.vesl.taggers import NltkTagger, SpacyTagger, TextBlobTagger, tokenize
from experiments.cloc.vesl.truth import TruthDetector
from experiments.cloc.vesl.words import GENERIC_WORDS, STOP_WORDS


@pytest.fixture(scope="module")
def tagger():
    found = TextBlobTagger()
    found.load()
    return found


class Fixed:
    """A tagger whose words say their tags: cat/NN."""

    def tokens(self, text):
        return text.split()

    def tags(self, words):
        return [(w.rsplit("/", 1)[0], w.rsplit("/", 1)[1].upper()) for w in words]


TAGS = ("DT", "JJ", "JJR", "NN", "NNS", "NNP", "VB", "IN", "CC", "CD", ",", "PRP$")


@settings(deadline=None)
@given(st.lists(st.sampled_from(TAGS)))
def test_chunks_are_those_of_a_regular_expression_over_letters(tags):
    letters = "".join(
        "D" if t == "DT" else "J" if t[:2] == "JJ" else "N" if t[:2] == "NN" else "x" for t in tags
    )
    words = [f"w{i}" for i in range(len(tags))]
    wanted = [words[m.start() : m.end()] for m in re.finditer("D?J*N+", letters)]
    assert chunks(list(zip(words, tags, strict=True))) == wanted


def test_noun_phrases_follow_the_listing():
    # Lower-case first, generic words go before tagging, stop-words alone are no phrase, repetitions stay.
    text = "The/DT Red/JJ Stock/NN Cat/NN of/IN i/NN and/CC the/DT cat/NN the/DT red/JJ cat/NN"
    assert noun_phrases(text, Fixed()) == ["the red stock cat", "the cat", "the red cat"]

    class Plain(Fixed):
        def tags(self, words):
            return [(w, "NN") for w in words]

    assert noun_phrases("Stock PHOTO of cats", Plain()) == ["of cats"]
    assert noun_phrases("Shutterstock of the", Plain()) == []


def test_the_first_twenty_are_kept_and_asked_for_once():
    words = [f"w{i % 15}/NN ,/," for i in range(30)]
    found, beyond = queries([" ".join(words[:10]), " ".join(words[10:])], Fixed())
    assert found == [f"w{i}" for i in range(15)]
    assert beyond == 10
    assert queries([" ".join(words)], Fixed(), most=3) == (["w0", "w1", "w2"], 27)


def test_word_lists():
    assert len(STOP_WORDS) == 127
    assert len(GENERIC_WORDS) == 61
    assert {"stock", "photo", "jpg", "vector", "shutterstock"} <= GENERIC_WORDS


def test_words_are_cut_as_penn_treebank_has_them():
    words = " ".join(tokenize("a cat's (red) hat. two dogs, e.g. pugs!"))
    assert words == "a cat 's ( red ) hat . two dogs , e.g . pugs !"


def test_textblob_finds_phrases_that_were_marked_by_hand(tagger):
    precision, recall = by_hand(tagger)
    assert precision > 0.9
    assert recall > 0.9
    assert tagger.tags([]) == []
    caption = "Stock photo of a happy golden retriever puppy with a red ball. The ball is wet!"
    assert noun_phrases(caption, tagger) == [
        "a happy golden retriever puppy",
        "a red ball",
        "the ball",
    ]


def test_nltk_with_its_data_and_without(tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="needs NLTK's data averaged_perceptron_tagger_eng"):
        NltkTagger().load()
    # The smallest data that NLTK takes: words whose tags are known, and nothing of abbreviations.
    model = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    model.mkdir(parents=True)
    known = {"the": "DT", "old": "JJ", "cat": "NN", "sat": "VBD", ".": "."}
    parts = {"weights": {}, "tagdict": known, "classes": sorted(set(known.values()))}
    for name, value in parts.items():
        (model / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(value))
    punkt = tmp_path / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).write_text("")
    real = NltkTagger()
    real.load()
    assert noun_phrases("The old cat sat. The cat.", real) == ["the old cat", "the cat"]
    words = ["the", "old", "cat", "sat", "."]
    assert real.tokens("the old cat sat.") == words
    assert real.tags(words) == [(w, known[w]) for w in words]
    nltk.data.path.clear()
    with pytest.raises(UserError, match="needs NLTK's data"):
        NltkTagger().load()  # although the process has loaded it before


def test_spacy_is_wanted_where_it_is_chosen():
    with pytest.raises(UserError, match="the pipeline 'no_such'"):
        SpacyTagger("no_such").load()


scores = st.tuples(st.integers(0, 6), st.integers(0, 4)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.1, 0.11, 0.5, 1.0]))
)


@settings(deadline=None)
@given(scores, st.sampled_from([0.0, 0.1, 0.5]), st.randoms())
def test_every_box_takes_its_best_phrase_above_the_threshold(scores_NxP, threshold, random):
    boxes = [[random.uniform(-0.5, 1.5) for _ in range(4)] for _ in scores_NxP]
    found = regions(Detections(np.array(boxes), scores_NxP), scores_NxP.shape[1], threshold)
    wanted, outside = [], 0
    for box, row in zip(boxes, scores_NxP.tolist(), strict=True):
        best = max(range(len(row)), key=lambda p: (row[p], -p), default=None)
        if best is None or not row[best] > np.float32(threshold):
            continue
        x1, y1, x2, y2 = (min(max(np.float32(v), 0), 1) for v in box)
        if x2 > x1 and y2 > y1:
            wanted.append(([x1, y1, x2, y2], best, row[best]))
        else:
            outside += 1
    assert found.outside == outside
    assert found.boxes_Mx4.dtype == np.float32
    assert found.boxes_Mx4.shape == (len(wanted), 4)
    assert found.boxes_Mx4.tolist() == [w[0] for w in wanted]
    assert found.phrase_M.tolist() == [w[1] for w in wanted]
    assert found.score_M.tolist() == [w[2] for w in wanted]


def test_detections_that_make_no_sense():
    good = np.array([[0, 0, 1, 1]], np.float32)
    with pytest.raises(BadRecord, match="do not fit"):
        regions(Detections(good, np.zeros((1, 3))), 2)
    with pytest.raises(BadRecord, match="not finite"):
        regions(Detections(good, np.array([[np.nan, 0.5]])), 2)
    with pytest.raises(BadRecord, match="not finite"):
        regions(Detections(good + np.inf, np.ones((1, 2))), 2)


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_of_a_padded_square_come_back_to_the_image(width, height, fractions):
    x, y, w, h = fractions[0] * width, fractions[1] * height, 0.5 + fractions[2], 0.5 + fractions[3]
    side = max(width, height)  # pixels of the square, in which the image is at the upper left
    square = np.array([[(x + w / 2) / side, (y + h / 2) / side, w / side, h / side]], np.float32)
    wanted = [x / width, y / height, (x + w) / width, (y + h) / height]
    np.testing.assert_allclose(to_image(square, (width, height))[0], wanted, atol=2e-6)


def test_what_a_phrase_means():
    meaning = Meaning(
        ["polar bear", "camel", "camel", "map of Japan", "motorized wheelchair", "cat"],
        [
            ["polar bear", "the small polar bear at the top"],
            ["the left camel", "the large left camel at the bottom"],
            ["the right camel", "the right camel at the bottom"],
            ["map of Japan"],
            ["motorized wheelchair", "the motorized wheelchair in the middle"],
            "cat",
        ],
    )
    assert meaning("The Polar bear", "name") == meaning("the small polar bear", "name") == [0]
    assert meaning("bear", "name") == []
    assert meaning("the bear") == meaning("small bear") == [0]
    assert meaning("brown bear") == meaning("the large polar bear") == []
    assert meaning("left camel", "name") == [1]
    assert meaning("camel", "name") == [1, 2]
    assert meaning("the map") == [3]
    assert meaning("japan") == []
    assert meaning("map", "name") == []
    assert meaning("the wheelchair") == [4]
    assert meaning("motorized wheelchair", "name") == [4]
    assert meaning("cat", "name") == [5]
    assert meaning("the") == meaning("") == []


@pytest.fixture(scope="module")
def scenes():
    found = Scenes(60, seed=3, size=72, backgrounds="plain", duplicates=0.3, jpeg=90)
    return [found[i] for i in range(60)]


def example(record, phrases=None):
    return Example(record, None, tuple(phrases or record["names"]))


def test_the_truth_is_the_truth(scenes):
    for record in scenes:
        (found,) = TruthDetector()([example(record)])
        np.testing.assert_array_equal(found.boxes_Nx4, record["boxes"])
        kept = regions(found, len(record["names"]))
        named = [record["names"][p] for p in kept.phrase_M]
        assert named == list(record["names"])


def test_noise_is_as_large_as_said_and_always_the_same(scenes):
    settings = {"miss": 0.3, "jitter": 0.1, "false_boxes": 1.5, "wrong_phrase": 0.2}
    noisy = TruthDetector(**settings, score_noise=0.5, seed=5)
    batch = noisy([example(r) for r in scenes])
    alone = [noisy([example(r)])[0] for r in reversed(scenes)][::-1]
    for one, other in zip(batch, alone, strict=True):
        np.testing.assert_array_equal(one.boxes_Nx4, other.boxes_Nx4)
        np.testing.assert_array_equal(one.scores_NxP, other.scores_NxP)
    other = TruthDetector(**settings, score_noise=0.5, seed=6)([example(r) for r in scenes])
    assert any(len(a.boxes_Nx4) != len(b.boxes_Nx4) for a, b in zip(batch, other, strict=True))
    objects = sum(len(r["names"]) for r in scenes)
    missed = TruthDetector(miss=0.3)([example(r) for r in scenes])
    assert abs(sum(len(f.boxes_Nx4) for f in missed) / objects - 0.7) < 0.1
    more = TruthDetector(false_boxes=1.5)([example(r) for r in scenes])
    assert abs((sum(len(f.boxes_Nx4) for f in more) - objects) / len(scenes) - 1.5) < 0.5
    moved = TruthDetector(jitter=0.1)([example(r) for r in scenes])
    shift = [
        (f.boxes_Nx4 - r["boxes"]) / np.tile(r["boxes"][:, 2:] - r["boxes"][:, :2], 2)
        for f, r in zip(moved, scenes, strict=True)
    ]
    assert abs(np.concatenate(shift).std() - 0.1) < 0.02
    several = [r for r in scenes if len(set(r["names"])) > 1]
    swapped = TruthDetector(wrong_phrase=0.5)([example(r) for r in several])
    right = [
        r["names"][p] == n
        for f, r in zip(swapped, several, strict=True)
        for n, p in zip(r["names"], regions(f, len(r["names"])).phrase_M, strict=True)
    ]
    assert abs(np.mean(right) - 0.5) < 0.12


def test_truth_needs_scenes_and_sense():
    with pytest.raises(BadRecord, match="needs the field 'boxes'"):
        TruthDetector()([example({"image": b"", "names": ["cat"]})])
    with pytest.raises(UserError, match="probability for 'miss'"):
        TruthDetector(miss=2.0)
    with pytest.raises(UserError, match="seed of 0 or more, not -1"):
        TruthDetector(seed=-1)
    with pytest.raises(UserError, match=r"--detector\.size must be .* not -14"):
        OwlV2(size=-14)


def label(**settings):
    detector = settings.pop("detector", TruthDetector())
    return Labeller(FieldCaptioner(), TextBlobTagger(), detector, **settings)


def test_labels_of_scenes_without_noise_are_right(scenes):
    for record, labelled in zip(scenes, label()(scenes), strict=True):
        found = labelled.record
        assert found["image"] == record["image"]
        assert found["text"] == record["text"]
        np.testing.assert_array_equal(found["source_boxes"], record["boxes"])
        kept = set(record) - {"boxes", "region_text"}
        assert kept <= set(found)
        assert found["captions"] == list(record["text"])
        assert len(found["boxes"]) == len(found["region_text"]) == len(found["region_scores"])
        assert set(found["region_text"]) <= set(found["phrases"])
        counted = score(found, "head")
        assert counted.precision == 1
        assert counted.pairs == labelled.counts.get("regions", 0)
        assert set(counted.lost) <= {"no phrase means it"}


def test_a_list_of_one_image_is_that_image(scenes):
    settings = {"jitter": 0.1, "score_noise": 0.5}
    (one,) = label(detector=TruthDetector(**settings))(scenes[:1])
    listed = scenes[0] | {"image": [scenes[0]["image"]]}
    (other,) = label(detector=TruthDetector(**settings))([listed])
    assert other.record["image"] == [scenes[0]["image"]]
    np.testing.assert_array_equal(other.record["boxes"], one.record["boxes"])
    (none,) = label()([scenes[0] | {"image": []}])
    assert none.reason == "there is no image"


def test_nothing_is_overwritten(scenes):
    (labelled,) = label()(scenes[:1])
    with pytest.raises(UserError, match="--drop=source_boxes"):
        label()([labelled.record])
    (again,) = label(drop=("source_boxes", "source_region_text"))([labelled.record])
    assert again.dropped == ["source_boxes", "source_region_text"]
    np.testing.assert_array_equal(again.record["source_boxes"], labelled.record["boxes"])


def test_a_bad_record_costs_itself_only():
    source = tiny_vesl.Hostile()
    records = [source[i] for i in range(28) if i % 7 != 1]
    detector = tiny_vesl.Fussy()
    found = label(detector=detector)(records)
    reasons = {r["number"] % 7: f.reason for r, f in zip(records, found, strict=True)}
    assert reasons == {
        0: "",
        2: "image format not recognised",
        3: "image is truncated or broken",
        4: "record has several images",
        5: "there is no caption",
        6: "detector fails (ZeroDivisionError)",
    }
    assert detector.calls == 1 + 8  # the batch, and each of its records
    (good, *_) = (f.record for f in found if f.record)
    assert good["region_text"] == ["a red cat"]
    assert good["captions"] == ["a red cat"]


def test_a_broken_model_ends_the_job_and_single_failures_do_not():
    class Flaky(tiny_vesl.Fussy):
        good = 0

        def __call__(self, examples):
            self.calls += 1
            if self.calls != self.good:
                raise ZeroDivisionError("out of order")
            return super().__call__(examples)

    record = {"image": jpeg(noise(0)), "text": ["a cat"]}
    found = label(detector=Flaky())([record] * 63)
    assert {f.reason for f in found} == {"detector fails (ZeroDivisionError)"}
    assert all(f.broken for f in found)
    broken = label(detector=Flaky())
    with pytest.raises(UserError, match=r"failed on 64 records in a row .*out of order"):
        broken([record] * 64)
    with pytest.raises(UserError, match="failed on 65 records in a row"):
        broken([record])  # another thread, or a bundle that is tried again
    Flaky.good = 31  # the batch, 29 failures, and then it works once
    assert sum(not f.reason for f in label(detector=Flaky())([record] * 90)) == 1

    class Few(tiny_vesl.Fussy):
        def __call__(self, examples):
            return super().__call__(examples)[1:]

    with pytest.raises(UserError, match="gave 1 results for 2 records"):
        label(detector=Few())([record] * 2)


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
        MemoryError(),
        OSError("the disk is gone"),
    ],
)
def test_what_is_the_machines_ends_the_job(error):
    class Ill(tiny_vesl.Fussy):
        most = 0  # records of a batch that it can take

        def __call__(self, examples):
            if len(examples) > self.most:
                raise error
            return super().__call__(examples)

    record = {"image": jpeg(noise(0)), "text": ["a cat"]}
    with pytest.raises(UserError, match="The detector cannot go on here") as said:
        label(detector=Ill())([record] * 3)
    assert "\n" not in str(said.value)
    Ill.most = 1  # a batch that is too large is not the end
    assert [f.reason for f in label(detector=Ill())([record] * 3)] == ["", "", ""]


def test_a_record_that_a_model_refuses_is_no_failure():
    class Refuses(tiny_vesl.Fussy):
        def __call__(self, examples):
            raise BadRecord("too wide")

    record = {"image": jpeg(noise(0)), "text": ["a cat"]}
    found = label(detector=Refuses())([record] * 65)
    assert {(f.reason, f.broken) for f in found} == {("too wide", False)}


@pytest.mark.parametrize("captions", ["a cat", None, [b"a cat"]])
def test_captions_of_a_wrong_type_end_the_job(captions):
    class One(FieldCaptioner):
        def __call__(self, examples):
            return [captions] * len(examples)

    labeller = Labeller(One(), TextBlobTagger(), tiny_vesl.Fussy())
    with pytest.raises(UserError, match="must give a list of texts for every image"):
        labeller([{"image": jpeg(noise(0))}] * 2)


def test_a_caption_that_the_tagger_cannot_take_costs_its_record():
    class Weak(TextBlobTagger):
        def tokens(self, text):
            return super().tokens(text)[: 1 // ("dragon" not in text)]

    records = [{"image": jpeg(noise(0)), "text": [t]} for t in ("a cat", "a dragon", "a dog")]
    found = Labeller(FieldCaptioner(), Weak(), tiny_vesl.Fussy())(records)
    assert [f.reason for f in found] == ["", "tagger fails (ZeroDivisionError)", ""]


def test_captions_from_fields_and_files(tmp_path):
    records = [
        {"file": "a.jpg", "text": ["alt"], "fused": "one, written anew"},
        {"file": b"b.jpg", "text": ["alt", " "], "fused": " "},
        {"file": "c.jpg", "text": []},
    ]
    examples = [Example(r, None) for r in records]
    assert FieldCaptioner(("fused", "text"))(examples) == [["one, written anew"], ["alt"], []]
    rows = [("a.jpg", "first"), ("b.jpg", "zweites ß, x"), ("a.jpg", "second")]
    (tmp_path / "c.csv").write_text("name,cap\n" + "".join(f'{k},"{t}"\n' for k, t in rows))
    lines = [json.dumps({"name": k, "cap": [t]}) for k, t in rows]
    (tmp_path / "c.jsonl").write_text("\n\n".join(lines))
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"name": [k for k, _ in rows], "cap": [t for _, t in rows]})
    pq.write_table(table, tmp_path / "c.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        captioner = FileCaptioner(str(tmp_path / f"c.{ending}"), "name", "file", "cap")
        captioner.load()
        assert captioner(examples) == [["first", "second"], ["zweites ß, x"], []]
    with pytest.raises(BadRecord, match="no field 'file'"):
        captioner([Example({}, None)])
    with pytest.raises(UserError, match=r"Row 1 of .* has no 'key' or no 'cap'"):
        FileCaptioner(str(tmp_path / "c.csv"), "key", text="cap").load()
    with pytest.raises(UserError, match=r"has no column 'key' \(there are: name, cap\)"):
        FileCaptioner(str(tmp_path / "c.parquet"), "key", text="cap").load()
    first = FileCaptioner(str(tmp_path / "c.csv"), "name").fingerprint()
    assert FileCaptioner(str(tmp_path / "c.*"), "name").fingerprint() != first
    with (tmp_path / "c.csv").open("a") as file:
        file.write("d.jpg,new\n")
    assert FileCaptioner(str(tmp_path / "c.csv"), "name").fingerprint() != first
    (tmp_path / "c.jsonl").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        FileCaptioner(str(tmp_path / "c.jsonl"), "name").load()


def test_of_parquet_only_the_columns_that_are_needed_are_read(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"name": ["a"], "cap": ["one"], "image": [b"large"]}), tmp_path / "c.parquet"
    )
    whole, read = pq.ParquetFile.read, []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read",
        lambda self, columns: read.append(columns) or whole(self, columns=columns),
    )
    captioner = FileCaptioner(str(tmp_path / "c.parquet"), "name", text="cap")
    captioner.load()
    assert read == [["name", "cap"]]
    assert captioner([Example({"name": "a"}, None)]) == [["one"]]


def test_fields_of_captions_are_looked_for_first(tmp_path):
    records = [{"image": b"", "text": ["a"]}, {"image": b"", "fused": "b"}]
    FieldCaptioner(("fused", "none")).check(records)
    with pytest.raises(UserError, match=r"None of 2 records.* 'fussed' \(did you mean 'fused'"):
        FieldCaptioner("fussed").check(records)
    for wrong in (5, (), ("text", 5)):
        with pytest.raises(UserError, match="needs names of fields"):
            FieldCaptioner(wrong)
    (tmp_path / "c.csv").write_text("key,text\n")
    with pytest.raises(UserError, match=r"the field 'key'.*--captioner\.field\."):
        FileCaptioner(str(tmp_path / "c.csv"), "key").check(records)
    FileCaptioner(str(tmp_path / "c.csv"), "key", "fused").check(records)


def test_the_files_of_a_checkpoint(tmp_path):
    assert OwlV2("somebody/model").fingerprint() is None
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "weights").write_bytes(b"12345")
    assert OwlV2(str(tmp_path)).fingerprint() == {"parts/weights": 5}


def test_mistakes_of_programs_are_one_sentence(tmp_path, capsys):
    from experiments.cloc import cost

    (tmp_path / "plain.py").write_text("from clipjax.defaults import base_config as get_config\n")
    for arguments, message in (
        ([], "FILE[:arg]"),
        (["nowhere.py"], "There is no config file 'nowhere.py'"),
        ([str(tmp_path / "plain.py")], "has no feature `regions`"),
    ):
        with pytest.raises(SystemExit) as status:
            cost.main(arguments)
        assert status.value.code == 2
        assert message in capsys.readouterr().err


corners = st.lists(st.tuples(*[st.integers(0, 6)] * 4), max_size=4)


@settings(deadline=None)
@given(corners, corners)
def test_iou_is_that_of_counted_pixels(one, other):
    boxes = [[sorted((a, c))[0], sorted((b, d))[0], max(a, c), max(b, d)] for a, b, c, d in one]
    others = [[sorted((a, c))[0], sorted((b, d))[0], max(a, c), max(b, d)] for a, b, c, d in other]
    found = iou(np.array(boxes, float).reshape(-1, 4), np.array(others, float).reshape(-1, 4))
    assert found.shape == (len(boxes), len(others))

    def cells(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    for i, a in enumerate(boxes):
        for j, b in enumerate(others):
            either = cells(a) | cells(b)
            share = len(cells(a) & cells(b)) / len(either) if either else 0
            assert found[i, j] == pytest.approx(share)


def test_scores_count_what_is_right_lost_and_false():
    left, right, top = [0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 0.1]
    record = {
        "names": ["polar bear", "cat", "dog", "owl"],
        "source_boxes": [left, right, top, [0.9, 0.9, 1, 1]],
        "source_region_text": [["polar bear"], ["cat"], ["dog"], ["owl"]],
        "phrases": ["bear", "the cat", "a dog"],
        # Right by its head, right, the same again, another phrase for the dog, nothing there.
        "boxes": np.array([left, right, [0.5, 0, 1, 0.9], top, [0.4, 0.4, 0.6, 0.6]]),
        "region_text": ["bear", "the cat", "the cat", "bear", "the cat"],
        "region_scores": [0.5, 0.4, 0.9, 0.3, 0.2],
    }
    head = score(record, "head")
    assert (head.objects, head.pairs, head.right) == (4, 5, 2)
    assert head.false == {"twice": 1, "wrong phrase": 1, "no object there": 1}
    assert head.lost == {"its box has another phrase": 1, "no phrase means it": 1}
    assert (head.precision, head.recall) == (2 / 5, 2 / 4)
    name = score(record, "name")
    assert name.right == 1
    assert name.false["wrong phrase"] == 2
    assert name.lost["no phrase means it"] == 2
    assert (head + name).objects == 8
    assert (head + name).false["twice"] == 2


def test_images_are_seen_upright_and_without_transparency():
    seen = []

    class Looks(tiny_vesl.Fussy):
        def __call__(self, examples):
            seen.extend(e.image for e in examples)
            return super().__call__(examples)

    record = {"image": np.dstack([np.asarray(noise(0)), np.zeros((72, 96), np.uint8)])}
    records = [record | {"text": ["a cat"]}, {"image": jpeg(noise(1)), "text": ["a cat"]}]
    label(detector=Looks())(records)
    assert [i.mode for i in seen] == ["RGB", "RGB"]
    assert seen[0].getpixel((5, 5)) == (255,) * 3
