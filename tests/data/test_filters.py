"""What a filter lets pass, and that what it turns down is replaced from the same source and counted."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from clipjax.data.bad import BadRecord
from clipjax.data.filters import make_filter
from clipjax.data.stream import SOURCE_BITS
from clipjax.errors import UserError
from tests.data.test_stream import counted, make_stream

GREY = np.zeros((30, 40, 3), np.uint8)


def passes(record, **conditions):
    return make_filter(conditions, "web")({"image": GREY, "text": ["a b"], **record})


@pytest.mark.parametrize(
    ("record", "conditions", "wanted"),
    [
        ({"similarity": 0.3}, {"ranges": {"similarity": (0.28, None)}}, True),
        ({"similarity": "0.3"}, {"ranges": {"similarity": (0.28, None)}}, True),
        ({"similarity": 0.2}, {"ranges": {"similarity": (0.28, None)}}, False),
        ({"similarity": 0.3}, {"ranges": {"similarity": (None, 0.28)}}, False),
        ({"similarity": float("nan")}, {"ranges": {"similarity": (None, 0.28)}}, False),
        ({"similarity": "high"}, {"ranges": {"similarity": (0, 1)}}, False),
        ({}, {"ranges": {"similarity": (0, 1)}}, False),
        ({"language": "de"}, {"values": {"language": ("en", "de")}}, True),
        ({"language": "fr"}, {"values": {"language": ("en", "de")}}, False),
        ({"language": "en"}, {"values": {"language": "en"}}, True),
        ({"language": ["en"]}, {"values": {"language": "en"}}, False),
        ({}, {"values": {"NSFW": "UNLIKELY"}}, False),
        ({}, {"min_side": 30}, True),
        ({}, {"min_side": 31}, False),
        ({}, {"max_aspect": 1.34}, True),
        ({}, {"max_aspect": 1.3}, False),
        ({}, {"min_words": 2}, True),
        ({}, {"min_words": 3}, False),
        ({"text": []}, {"min_words": 1}, False),
    ],
)
def test_conditions(record, conditions, wanted):
    assert passes(record, **conditions) is wanted


def test_the_size_costs_no_decoding(monkeypatch):
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "PNG")
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert passes({"image": file.getvalue()}, min_side=30)
    assert not passes({"image": [file.getvalue(), b""]}, min_side=31)


@pytest.mark.parametrize("image", [[], (), b"", b"no image", None])
def test_a_image_without_a_size_is_a_bad_record(image):
    with pytest.raises(BadRecord):
        passes({"image": image}, min_side=1)


class Scored:
    """Images with a score; every third is good."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return {"image": GREY, "text": [f"number {index}"], "language": "en", "score": index % 3}


def test_what_is_turned_down_is_replaced_from_the_same_source():
    filtered = {
        "kind": "tests.data.test_filters:Scored",
        "filter": {"ranges": {"score": (2, None)}},
        "weight": 3.0,
    }
    plain = {"kind": "tests.data.test_filters:Scored", "weight": 1.0}
    stream = make_stream({"a": filtered, "b": plain})
    samples = [stream[i] for i in range(200)]
    source = [int(s["sample_id"]) >> SOURCE_BITS for s in samples]
    # The mixture is as if there were no filter.
    assert Counter(source) == {0: 150, 1: 50}
    records = [int(s["sample_id"]) & ((1 << SOURCE_BITS) - 1) for s in samples]
    assert all(r % 3 == 2 for r, n in zip(records, source, strict=True) if n == 0)
    # A good record comes at least once in an epoch of its source.
    first = [r for r, n in zip(records, source, strict=True) if n == 0][:60]
    assert set(first) == set(range(2, 60, 3))
    counts = Counter()
    for sample in samples:
        counts.update(counted(sample))
    assert counts.keys() <= {"filtered", "cut"}
    assert 200 < counts["filtered"] < 400  # two thirds of all draws for 150 samples


def test_a_filter_that_lets_nothing_pass():
    stream = make_stream(
        {"a": {"kind": "tests.data.test_filters:Scored", "filter": {"min_side": 1000}}}
    )
    with pytest.raises(UserError, match="filter of source 'a' turned down 1000 records at place 5"):
        stream[5]


def test_mistakes():
    with pytest.raises(UserError, match="did you mean 'min_side'"):
        make_filter({"min_sides": 3}, "web")
    with pytest.raises(UserError, match=r"range of 'score' must be \(lowest, highest\)"):
        make_filter({"ranges": {"score": (1,)}}, "web")
    with pytest.raises(UserError, match=r"range of 'score' must be \(lowest, highest\)"):
        make_filter({"ranges": {"score": (None, None)}}, "web")
    assert make_filter(None, "web") is None
