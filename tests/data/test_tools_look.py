"""`clipjax data inspect` and `bench`: numbers, a page that nothing can break out of, and where the wall is."""

import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from clipjax.cli import main
from clipjax.data.commands.bench import settings, wall
from clipjax.data.commands.bench_stages import Setting
from clipjax.data.commands.inspection import printable
from clipjax.data.sources import array_record

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "</li></ul></style><svg onload=alert(3)>",
    "' & \x1b[31mred \u202e \ud800",
)

CONFIG = """
from clipjax.defaults import base_config

def get_config(arg=None):
    config = base_config()
    config.total_samples = 64
    config.model.image.size = 64
    config.model.text.length = 8
    config.data.sources = {"mine": {"kind": "array_record", "files": FILES}}
    config.data.features.regions = {"kind": "regions", "count": 2}
    config.preprocess.resize = "squash"
    config.data.features.image.augment.update(crop="fit", flip=1.0)
    return config
"""


def jpeg(value, size):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 90, 30)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def files(tmp_path):
    """Twenty records, one of them broken; hostile captions, region texts and language."""
    made = [
        {
            "image": jpeg(i, (80, 60)) if i % 2 else np.full((30, 60, 3), i, np.uint8),
            "text": ["one two three", "a " * (1 + i)],
            "language": "de" if i < 5 else "en",
            "boxes": [[0.1, 0.2, 0.4, 0.9]],
            "region_text": ["a thing"],
        }
        for i in range(20)
    ]
    made[7]["image"] = b"nothing"
    for i, text in enumerate(HOSTILE[:3]):
        made[i] |= {"text": [text], "region_text": [text], "language": text}
    array_record.write(made, tmp_path / "a.arrayrecord")
    return str(tmp_path / "a.arrayrecord")


class Tags(html.parser.HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]


def test_numbers(files, capsys):
    assert main(["data", "inspect", files]) == 0
    said = capsys.readouterr().out
    assert "20, evenly from everywhere" in said
    assert "1 (5.00%)" in said
    assert "array 52.6%, JPEG 47.4%" in said
    assert "60 · 60 · 60 · 80 · 80" in said
    assert "de 10.5%" in said
    assert "\x1b" not in said


def test_a_page_that_nothing_breaks_out_of(files, tmp_path):
    page = tmp_path / "page.html"
    assert main(["data", "inspect", files, f"--output={page}"]) == 0
    text = page.read_text()
    found = Tags(text)
    assert "script" not in found.tags
    assert found.tags.count("img") == found.tags.count("svg") == 19
    assert found.tags.count("rect") == 2 * 19
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name, value)
        if tag == "img" and name == "src":
            assert value.startswith("data:image/webp;base64,")
    assert "default-src 'none'" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")


def test_the_training_views_with_boxes_moved(files, tmp_path):
    config, page = tmp_path / "config.py", tmp_path / "page.html"
    config.write_text(CONFIG.replace("FILES", repr(files)))
    assert main(["data", "inspect", f"--config={config}", f"--output={page}"]) == 0
    found = Tags(page.read_text())
    assert found.tags.count("img") == found.tags.count("svg") == 38
    left = [float(v) for tag, name, v in found.attributes if (tag, name) == ("rect", "x")]
    # As stored 0.1 to 0.4, mirrored 0.6 to 0.9; each box is drawn twice.
    stored, moved = [x for x in left if x < 0.3], [x for x in left if x > 0.3]
    assert len(stored) == len(moved) == 38
    assert set(stored) == {0.1}
    assert set(moved) == {0.6}
    assert page.read_text().count(">a thing<") == 2 * 16
    no_regions = tmp_path / "none.html"
    config.write_text(
        CONFIG.replace("FILES", repr(files)).replace("config.data.features.regions =", "_ =")
    )
    arguments = [f"--output={no_regions}"]
    assert main(["data", "inspect", f"--config={config}", *arguments]) == 0
    assert Tags(no_regions.read_text()).tags.count("rect") == 38


def test_outputs_are_kept(files, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert main(["data", "inspect", files, f"--output={tmp_path / 'mine'}"]) == 2
    assert main(["data", "bench", files, f"--json={tmp_path / 'mine'}"]) == 2
    assert capsys.readouterr().err.count("is there already") == 2
    assert (tmp_path / "mine").read_text() == "mine"
    assert main(["data", "inspect", files, "--limit=0"]) == 2
    assert main(["data", "bench", files, "--seconds=0"]) == 2


def test_terminals_are_safe():
    assert printable("a\x1b[31m\n") == "a\ufffd[31m\ufffd"
    assert printable("x" * 50) == "x" * 39 + "…"
    assert printable("né 日本") == "né 日本"


@pytest.mark.parametrize("source", [pytest.param("drawings", marks=pytest.mark.slow), "FILES"])
def test_bench(files, source, tmp_path, capsys):
    output = tmp_path / "bench.json"
    source = source.replace("FILES", files)
    assert main(["data", "bench", source, "--seconds=0.1", f"--json={output}"]) == 0
    said = capsys.readouterr().out
    found = json.loads(output.read_text())
    rates = found["samples_per_second"]
    for name in ("read", "decode", "augment", "tokenize", "whole sample"):
        assert rates[name] > 0
        assert name in said
    assert {(p["threads"], p["workers"]) for p in found["pipeline"]} >= {(1, 0), (1, 1)}
    assert all(p["samples_per_second"] > 0 for p in found["pipeline"])
    assert (found["limit"] is None) == (source == "drawings")
    assert "The wall is" in said
    assert found["wall"] in said


def test_the_wall():
    rates = {
        "read": 100.0,
        "decode": 500.0,
        "augment": 900.0,
        "tokenize": 9e3,
        "whole sample": 70.0,
    }
    speeds = {Setting(1, 0): 70.0, Setting(1, 2): 130.0}
    said = wall(rates, speeds, 2, 300, 224)
    assert said.startswith("The wall is the stage 'read', 70% of a sample's time in one thread")
    assert said.endswith("fastest here: --config.data.threads=1 --config.data.workers=2")
    assert "store smaller images" in wall(rates | {"decode": 80.0}, speeds, 2, 1000, 224)
    assert "pipeline around the samples" in wall(rates, {Setting(1, 0): 60.0}, 8, 300, 224)
    assert settings(6) == [
        *(Setting(n, 0) for n in (1, 2, 4, 6)),
        *(Setting(1, n) for n in (1, 2, 4, 6)),
    ]
