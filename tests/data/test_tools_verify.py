"""`clipjax data verify` finds planted damage and nothing else."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from clipjax.cli import main
from clipjax.data.sources import array_record, tar_index, tar_writer


def jpeg(value, size=(40, 30)):
    pixels = np.random.default_rng(value).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def records(count=300):
    return [
        {
            "image": jpeg(i),
            "text": [f"number {i}"],
            "language": "en",
            "boxes": np.array([[0.1, 0.1, 0.6, 0.7]] * (i % 3), np.float32).reshape(-1, 4),
            "region_text": ["a thing"] * (i % 3),
        }
        for i in range(count)
    ]


# What is wrong with some records, and the reason that must be found.
DAMAGE = {
    5: ({"image": b""}, "image has zero bytes"),
    17: ({"image": jpeg(17)[:-200]}, "image is truncated or broken"),
    18: ({"image": b"<html>404</html>"}, "image format not recognised"),
    44: ({"text": []}, "text is empty"),
    45: ({"text": ["  "]}, "text is empty"),
    129: ({"text": b"\xff\xfe"}, "text is not UTF-8"),
    130: ({"text": 5}, "text is neither a string nor a list of them"),
    200: (
        {"boxes": [[0, 0, 1]], "region_text": ["x"]},
        "boxes are not [m,4] numbers",
    ),
    201: ({"boxes": [[0, 0, 1, math.nan]], "region_text": ["x"]}, "boxes are not [m,4] numbers"),
    202: (
        {"boxes": [[0, 0, 1, 1]], "region_text": ["x", "y"]},
        "boxes and region texts are not equally many",
    ),
    203: (
        {"boxes": [[0.6, 0, 0.4, 1]], "region_text": ["x"]},
        "a box is empty or outside of the image",
    ),
    204: (
        {"boxes": [[1.6, 0, 1.8, 1]], "region_text": ["x"]},
        "a box is empty or outside of the image",
    ),
    299: ({"image": None}, "there is no image"),
}


@pytest.fixture
def good(tmp_path):
    array_record.write(records(), tmp_path / "good.arrayrecord")
    return str(tmp_path / "good.arrayrecord")


@pytest.fixture
def bad(tmp_path):
    made = records()
    for index, (fields, _) in DAMAGE.items():
        made[index] |= fields
    array_record.write(made, tmp_path / "bad.arrayrecord")
    return str(tmp_path / "bad.arrayrecord")


def verify(*arguments):
    return main(["data", "verify", *map(str, arguments)])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_planted_damage_and_only_that(bad, tmp_path, capsys, workers):
    output = tmp_path / "bad.jsonl"
    assert verify(bad, f"--output={output}", f"--workers={workers}") == 1
    assert lines(output) == [
        {"source": bad, "index": i, "reason": reason} for i, (_, reason) in DAMAGE.items()
    ]
    said = capsys.readouterr().out
    assert f"{300 - len(DAMAGE)}" in said
    assert "text is empty" in said
    assert verify(bad, "--limit=5") == 0


def test_good_data(good, tmp_path, capsys):
    assert verify(good, f"--output={tmp_path / 'none.jsonl'}") == 0
    assert (tmp_path / "none.jsonl").read_text() == ""
    assert "100.00%" in capsys.readouterr().out
    assert verify("scenes", "--set", "backgrounds=plain", "--limit=20") == 0
    assert verify("drawings", "--limit=50") == 0
    assert verify("drawings", "--set", "group=concept", "--limit=20") == 0


def test_every_box_format(tmp_path):
    made = records(3)
    made[1]["boxes"], made[1]["region_text"] = [[5, 5, 30, 20]], ["x"]
    made[2]["boxes"], made[2]["region_text"] = [[30, 20, 9, 9]], ["x"]
    array_record.write(made, tmp_path / "a.arrayrecord")
    for box_format, right in (("xywh_pixels", 0), ("xyxy_pixels", 1), ("xyxy", 1)):
        status = verify(tmp_path / "a.arrayrecord", "--set", f"box_format={box_format}")
        assert status == right


def test_hashes_find_what_has_changed(good, tmp_path):
    hashes = tmp_path / "hashes.txt"
    assert verify(good, f"--hashes={hashes}") == 0
    found = hashes.read_text().splitlines()
    assert len(found) == 300
    assert [line.split()[0] for line in found[:2]] == ["0", "1"]
    assert len(found[0].split()[1]) == 64
    for workers in (1, 2):
        assert verify(good, f"--hashes={hashes}", f"--workers={workers}") == 0
    made = records()
    made[150]["image"] = jpeg(1000)
    array_record.write(made, tmp_path / "changed.arrayrecord")
    output = tmp_path / "bad.jsonl"
    changed = str(tmp_path / "changed.arrayrecord")
    assert verify(changed, f"--hashes={hashes}", f"--output={output}") == 1
    reason = "image has changed since the hashes were written"
    assert lines(output) == [{"source": changed, "index": 150, "reason": reason}]
    assert verify(changed, f"--hashes={hashes}", "--limit=150") == 0
    assert hashes.read_text().splitlines() == found
    array_record.write(records(298), tmp_path / "shorter.arrayrecord")
    assert verify(tmp_path / "shorter.arrayrecord", f"--hashes={hashes}") == 1
    array_record.write(records(302), tmp_path / "longer.arrayrecord")
    output.unlink()
    assert verify(tmp_path / "longer.arrayrecord", f"--hashes={hashes}", f"--output={output}") == 1
    assert [line["index"] for line in lines(output)] == [300, 301]


def test_a_bad_record_does_not_shift_the_hashes(bad, good, tmp_path):
    hashes, output = tmp_path / "hashes.txt", tmp_path / "bad.jsonl"
    assert verify(good, f"--hashes={hashes}") == 0
    assert verify(bad, f"--hashes={hashes}", f"--output={output}") == 1
    assert [line["index"] for line in lines(output)] == list(DAMAGE)


def test_arrays_have_hashes(tmp_path):
    arguments = ["drawings", "--limit=40", f"--hashes={tmp_path / 'h'}"]
    assert verify(*arguments) == 0
    assert verify(*arguments) == 0
    assert verify(*arguments, "--set", "split=unseen") == 1


@pytest.mark.parametrize("ending", ["arrayrecord", "tar"])
def test_damaged_files(tmp_path, ending):
    path, made = tmp_path / f"a.{ending}", records(40)
    if ending == "tar":
        tar_writer.write(map(tar_writer.fit, made), path)
    else:
        array_record.write(made, path)
    data = bytearray(path.read_bytes())
    place = data.find(made[20]["image"])
    data[place : place + 20] = bytes(20)
    path.write_bytes(data)
    output = tmp_path / "bad.jsonl"
    assert verify(path, f"--output={output}") == 1
    (line,) = lines(output)
    assert line["index"] == 20
    reasons = {"tar": "image format not recognised", "arrayrecord": "file is damaged here"}
    assert line["reason"] == reasons[ending]
    if ending == "tar":
        assert tar_index.scan(str(path)).remarks == {}


def test_a_source_that_fails(tmp_path):
    """An error that no source is known to make is a reason, too."""
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "missing.jpg", "text": "a"}\n')
    assert verify(path, f"--output={tmp_path / 'bad.jsonl'}") == 1
    assert len(lines(tmp_path / "bad.jsonl")) == 1


def test_mistakes(good, tmp_path, capsys):
    (tmp_path / "there").write_text("mine")
    cases = (
        ([f"--output={tmp_path / 'there'}"], "is there already"),
        ([f"--output={tmp_path / 'no' / 'x'}"], "cannot be opened"),
        ([f"--hashes={tmp_path / 'there'}"], "is not a file of hashes: its line 1 is 'mine'"),
        (["--limit=0"], "--limit must be at least 1"),
        (["--workers=0"], "--workers must be at least 1"),
        (["--set", "box_format=xyxx"], "cannot be 'xyxx'"),
    )
    for arguments, words in cases:
        assert verify(good, *arguments) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "there").read_text() == "mine"
    assert not list(tmp_path.glob("*.part"))


def test_further_features_are_checked_too(tmp_path, capsys):
    """With a config, what its features ask for: here labels, and neither images nor captions."""
    config, output = tmp_path / "config.py", tmp_path / "bad.jsonl"
    config.write_text(
        "from clipjax.defaults import base_config\n"
        "def get_config(arg=None):\n"
        "    config = base_config()\n"
        "    config.data.sources = {'numbers': {'kind': 'tests.data.own_features:Numbered'}}\n"
        "    classes = ('cat', 'dog')\n"
        "    labels = {'kind': 'labels', 'column': 'kind', 'classes': classes}\n"
        "    config.data.features = {'labels': labels}\n"
        "    return config\n"
    )
    assert main(["data", "verify", f"--config={config}", f"--output={output}"]) == 1
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in lines] == [2, 5, 8, 11, 14, 17]
    assert "finds 'cow' in the column 'kind'" in lines[0]["reason"]
    assert main(["data", "inspect", f"--config={config}", f"--output={tmp_path / 'a.html'}"]) == 0
    assert "captions a record" in capsys.readouterr().out
