"""Files of captions beside images, and what is wrong with those that are refused."""

import json

import numpy as np
import pytest

from clipjax.data.bad import BadRecord
from clipjax.data.images import decode
from clipjax.data.sources import Captions, Synthetic, make_source
from clipjax.errors import UserError


def test_json_lines(tmp_path):
    # U+2028 ends a line for str.splitlines, and may stand in a JSON string as it is.
    rows = [
        {"image": "sub/a.png", "text": "eins\u2028zwei", "language": "de", "label": 3},
        {"image": "missing.png", "text": ["one", "two"]},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"image")
    source = Captions(str(tmp_path / "train.jsonl"))
    assert len(source) == 2
    assert source[0] == rows[0] | {"image": b"image", "text": ["eins\u2028zwei"]}
    with pytest.raises(BadRecord, match="image file cannot be read"):
        source[1]  # the pipeline counts it


def test_comma_separated(tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "train.csv").write_text('text,image,label\n"a cat,\nasleep",a.png,7\n')
    source = Captions(str(tmp_path / "train.csv"))
    wanted = {"image": b"image", "text": ["a cat,\nasleep"], "label": "7", "language": "en"}
    assert source[0] == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"image": ', r"first row of .* \(json is broken\)"),
        ("a.jsonl", b"[1, 2]\n", r"first row of .* \(json is no object\)"),
        ("a.jsonl", b'\n{"image": "a.png"}\n', r"first row of .* \(text is empty\)"),
        ("a.jsonl", b'{"image": 5, "text": "x"}\n', r"first row of .* \(there is no image\)"),
        ("a.csv", b"image,caption\na.png,x\n", "must have the columns 'image' and 'text'"),
        ("a.csv", b"image,text\na.png\n", r"first row of .* \(text is empty\)"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Captions(str(tmp_path / name))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": ', "json is broken"),
        (b"[" * 100_000, "json is broken"),
        (b"7", "json is no object"),
        (b'{"image": "a.png"}', "text is empty"),
        (b'{"image": "a.png", "text": [1]}', "neither a string nor a list"),
        (b'{"image": "a.png", "text": "\xff"}', "text is not UTF-8"),
        (b'{"image": "a.png", "text": "\\ud800"}', "text is not UTF-8"),
        (b'{"image": "a\\u0000.png", "text": "x"}', "image file cannot be read"),
        (b'{"image": "..", "text": "x"}', "image file cannot be read"),
    ],
)
def test_a_later_line_that_is_broken_is_a_bad_record(tmp_path, line, reason):
    (tmp_path / "a.png").write_bytes(b"image")
    good = b'{"image": "a.png", "text": "x"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + line + b"\n" + good)
    source = Captions(str(tmp_path / "a.jsonl"))
    assert len(source) == 3
    with pytest.raises(BadRecord, match=reason):
        source[1]
    assert source[0] == source[2]


def test_a_later_row_that_is_broken_is_a_bad_record(tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "a.csv").write_bytes(b"image,text\na.png,x\na.png\na.png,\xff\na.png,y\n")
    source = Captions(str(tmp_path / "a.csv"))
    for index, reason in ((1, "text is empty"), (2, "text is not UTF-8")):
        with pytest.raises(BadRecord, match=reason):
            source[index]
    assert source[3]["text"] == ["y"]


def test_no_file_and_no_records(tmp_path):
    with pytest.raises(UserError, match=r"no caption file 'nowhere\.jsonl'"):
        Captions("nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    entry = {"kind": "captions", "file": str(tmp_path / "empty.jsonl"), "weight": 2.0}
    with pytest.raises(UserError, match="The source 'mine' has no records"):
        make_source(entry, "mine")


def test_synthetic_records_never_change():
    first, again = Synthetic(size=8, length=3)[1], Synthetic(size=8, length=9)[1]
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["text"] == ["picture number 1"]
    assert decode(first["image"]).size == (8, 8)
