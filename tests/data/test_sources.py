"""Files of captions beside pictures, and what is wrong with those that are refused."""

import json

import numpy as np
import pytest

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
    (tmp_path / "sub" / "a.png").write_bytes(b"picture")
    source = Captions(str(tmp_path / "train.jsonl"))
    assert len(source) == 2
    assert source[0] == rows[0] | {"image": b"picture", "text": ["eins\u2028zwei"]}
    # A picture that is not there is a bad record, which the pipeline counts.
    assert source[1] == {"image": b"", "text": ["one", "two"], "language": "en"}


def test_comma_separated(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "train.csv").write_text('text,image,label\n"a cat,\nasleep",a.png,7\n')
    source = Captions(str(tmp_path / "train.csv"))
    wanted = {"image": b"picture", "text": ["a cat,\nasleep"], "label": "7", "language": "en"}
    assert source[0] == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"image": "a.png", "text": "x"}\n{"image": ', "Line 2 of .* is not JSON"),
        ("a.jsonl", b"[1, 2]\n", "Line 1 of .* must have an 'image'"),
        ("a.jsonl", b'{"image": "a.png"}\n', "Line 1 of .* must have an 'image'"),
        ("a.jsonl", b'{"image": "a.png", "text": [1]}\n', "Line 1 of .* must have an 'image'"),
        ("a.jsonl", b'{"image": 5, "text": "x"}\n', "Line 1 of .* must have an 'image'"),
        ("a.jsonl", b'{"image": "a.png", "text": "\xff"}\n', "cannot be read: 'utf-8' codec"),
        ("a.csv", b"image,caption\na.png,x\n", "must have the columns 'image' and 'text'"),
        ("a.csv", b"image,text\na.png\n", "Line 2 of .* must have an 'image'"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Captions(str(tmp_path / name))
    assert str(caught.value).endswith(".")


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
