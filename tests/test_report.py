import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import ExifTags, Image

from clipjax.data.images import upright_size
from clipjax.evals.retrieval import Retrieval
from clipjax.log.pages.figures import curve_svg
from clipjax.log.pages.galleries import Gallery, Query
from clipjax.log.pages.images import Answer, frame_html, thumbnail_uri
from clipjax.log.pages.numbers import short_number
from clipjax.log.pages.region_galleries import Found, GroundingGallery, Region, RegionGallery
from clipjax.log.report import write_report
from clipjax.log.writers import JsonlWriter, write_results

EVIL = "<script>alert('x')</script> & \"q\""
VOID = {"meta", "img", "use", "path", "br", "rect", "line", "circle"}


class Page(HTMLParser):
    """Checks that tags nest and collects what a test asks for."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open, tag
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def with_class(self, name):
        return [a for _, a in self.tags if name in (a.get("class") or "").split()]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def fill_run(workdir, steps=1200):
    writer = JsonlWriter(workdir / "metrics.jsonl")
    for i in range(1, steps + 1):
        writer.write(64 * i, i, {"loss": 4 * math.exp(-i / 300), "learning_rate": 1e-3})
        if i % 300 == 0:
            writer.write(64 * i, i, {f"unseen/text_to_image/R@{k}": k * i / 12000 for k in (1, 5)})
    writer.close()
    write_results(
        workdir / "results.json",
        {
            "unseen": {
                "samples": 64 * steps,
                "metrics": {"text_to_image/R@1": 0.1, "text_to_image/R@5": 0.5},
                "protocol": {"texts": 184, "chance": {"text_to_image/R@1": 0.0054}},
            },
            EVIL: {"samples": 64 * steps, "metrics": {"acc@1": 0.25, "mean_per_class": math.nan}},
        },
    )
    config = {"seed": 0, "batch_size": 64, "total_samples": 64 * steps, "note": EVIL}
    (workdir / "config.json").write_text(json.dumps(config))


def galleries():
    image = np.zeros((16, 16, 3), np.uint8)
    answers = [Answer(EVIL, 0.5, False, image), Answer("pear", 0.4, True, Image.new("L", (5, 9)))]
    return [
        Gallery("by text", True, [Query(EVIL, image, answers, 2)]),
        Gallery("by image", False, [Query("pear", image, answers, 2)], "A note."),
    ]


def test_report_is_whole_self_contained_and_escaped(tmp_path):
    fill_run(tmp_path)
    path = write_report(tmp_path, galleries())
    assert path == tmp_path / "report.html"
    source = path.read_text(encoding="utf-8")
    page = read(path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/", "#")), value
    assert not re.search(r"(?i)https?:|url\((?!#)|@import", source)
    assert EVIL not in source
    assert "".join(page.text).count("<script>") >= 4  # shown as text: query, answers, table, config
    shown = "".join(page.text)
    assert "Finished" in shown
    assert "10.0%" in shown
    assert "0.5%" in shown  # chance
    assert "184 texts" in shown
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


def test_right_answers_are_marked_not_only_by_colour(tmp_path):
    page = read(write_report(tmp_path, galleries()))
    by_text = page.with_class("image")
    assert sum("right" in a["class"].split() for a in by_text) == 1
    assert "0.400 · right" in "".join(page.text)
    assert "✓" in page.text
    assert "the right one is at place 2" in "".join(page.text)


def test_an_empty_run_has_a_report(tmp_path):
    shown = "".join(read(write_report(tmp_path)).text)
    assert "No metrics yet" in shown
    assert "No evaluator has run yet" in shown


def test_a_killed_or_broken_run_says_so(tmp_path):
    fill_run(tmp_path, steps=30)
    config = {"config": {"total_samples": 64 * 60}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('garbage\n{"samples": 1984, "step": 31, "loss": "NaN"}\n{"samp')
    (tmp_path / "results.json").write_text("{")
    shown = "".join(read(write_report(tmp_path)).text)
    assert "51.7% of the run" in shown
    assert "1 line(s) of metrics.jsonl cannot be read" in shown
    assert "results.json cannot be read" in shown
    assert "The loss was nan at 1,984 samples" in shown
    (tmp_path / "config.json").write_text("[1]")
    write_report(tmp_path)


def test_a_image_that_cannot_be_shown_does_not_stop_the_report(tmp_path):
    query = Query("x", b"not an image", [Answer("y", 0.1, False, b"")])
    page = read(write_report(tmp_path, [Gallery("g", True, [query]), Gallery("h", False, [query])]))
    assert page.text.count("no image") == 3


def test_galleries_come_from_the_retrieval_evaluator(tmp_path):
    class Encoder:
        def images(self, params, images):
            return np.eye(4, dtype=np.float32)[[int(i[0, 0, 0]) for i in images]]

        def texts(self, params, texts):
            return np.eye(4, dtype=np.float32)[[int(t) for t in texts]]

    source = [{"image": np.full((8, 8, 3), i, np.uint8), "text": [str(i)]} for i in range(3)]
    by_text, by_image = Retrieval("small", source, Encoder()).galleries(None, n=3)
    assert (by_text.by_text, by_image.by_text) == (True, False)
    assert [q.answers[0].right for q in by_text.queries] == [True] * 3
    assert [int(q.answers[0].image[0, 0, 0]) for q in by_text.queries] == [0, 1, 2]
    page = read(write_report(tmp_path, [by_text, by_image]))
    assert "small: images for a text" in page.text
    assert "3 of 3 are right" in "".join(page.text)


def rectangles(page, mark):
    """x, y, width and height of the boxes of one class, in order."""
    found = [a for tag, a in page.tags if tag == "rect" and mark in a["class"].split()]
    return [[float(a[k]) for k in ("x", "y", "width", "height")] for a in found]


def test_regions_are_drawn_with_their_texts(tmp_path):
    image = Image.new("RGB", (64, 32))
    wrong = Answer(EVIL, 0.5, False)
    regions = [
        Region((0.25, 0, 0.75, 0.5), "pear", [Answer("pear", 0.6, True), wrong], 1),
        Region((0, 0.5, 0.5, 1), EVIL, [wrong], 1200),
    ]
    many = [Region((0, 0, 1, 1), f"text {i}", [], 2) for i in range(9)]
    gallery = RegionGallery("mine: texts", [(image, regions), (b"broken", many)], "A note.")
    path = write_report(tmp_path, [gallery])
    assert EVIL not in path.read_text(encoding="utf-8")
    page = read(path)
    shown = "".join(page.text)
    assert rectangles(page, "c0") == [[0.25, 0, 0.5, 0.5]]
    assert rectangles(page, "c1") == [[0, 0.5, 0.5, 0.5]]
    assert len(rectangles(page, "under")) == 2
    assert len(page.with_class("right")) == 1
    assert page.text.count("✓") == 1
    assert "A note. 1 of 11 regions have a right text at the first place." in shown
    assert "the right one is at place 1,200" in shown
    assert "and 3 more regions" in shown
    assert "text 5" in shown
    assert "text 6" not in shown
    assert "no image" in shown


def test_boxes_that_were_found_stand_beside_the_true_ones(tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    right = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    found = [
        Found("pear", right, np.array([0, 0, 0.5, 0.25]), 0.5),
        Found(EVIL, right[:1], np.array([0.75, 0.5, 0.25, 1]), 0.0),  # crossed corners
    ]
    path = write_report(tmp_path, [GroundingGallery("mine: boxes", [(image, found)], "A note.")])
    assert EVIL not in path.read_text(encoding="utf-8")
    page = read(path)
    assert rectangles(page, "truth") == [[0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0, 0, 0.5, 0.5]]
    assert rectangles(page, "found") == [[0, 0, 0.5, 0.25], [0.75, 0.5, 0, 0.5]]
    shown = "".join(page.text)
    assert "1 of 2 have an IoU of at least 0.5." in shown
    assert "✓ pear" in shown
    assert "true box" in shown
    assert "IoU 0.50" in shown


def test_a_frame_escapes_its_tags():
    page = Page(frame_html("data:,", np.array([[0.1, 0.2, 0.3, 0.4]]), ["c2"], [EVIL]))
    assert EVIL in "".join(page.text)
    (tag,) = [a for name, a in page.tags if name == "b"]
    assert tag["style"] == "left:10.00%;top:20.00%"
    assert "svg" not in [tag for tag, _ in Page(frame_html("data:,", np.zeros((0, 4)), [])).tags]


def test_shares_of_a_group_are_percent(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write(64, 1, {"wrong/accuracy/size": 0.255, "boxes/iou": 0.125, "regions/mAcc": 0.75})
    writer.close()
    result = {"samples": 64, "metrics": {"iou": 0.125}, "protocol": {"regions": 1234, "pairs": 5}}
    write_results(tmp_path / "results.json", {"boxes": result})
    shown = "".join(read(write_report(tmp_path)).text)
    for text in ("25.5%", "12.5%", "75.0%", "1,234 regions × 5 pairs"):
        assert text in shown, text


def test_curves_follow_the_page_and_keep_their_range():
    rng = np.random.default_rng(0)
    x = np.arange(5000)
    svg = curve_svg("loss <1>", {"loss": (x, rng.normal(size=5000)), "b": ([], [])})
    assert "#0102" not in svg
    assert "var(--s1)" in svg
    assert "var(--muted)" in svg
    assert 'aria-label="loss &lt;1&gt;"' in svg
    assert len(svg) < 120_000
    with_gap = curve_svg("t", {"a": ([1, 2, 3], [1.0, math.nan, 2.0])}, percent=True)
    assert "%" in with_gap
    ids = [set(re.findall(r' id="(p[0-9a-f]+)"', curve_svg(t, {"a": ([1], [1])}))) for t in "xy"]
    assert ids[0]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
def test_thumbnails_of_any_mode_are_small_and_flat(mode):
    image = opened(thumbnail_uri(Image.new(mode, (400, 200)), size=100))
    assert image.size == (100, 50)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.asarray(opened(thumbnail_uri(np.asarray(clear)))).min() > 250


def test_thumbnails_are_upright():
    """As boxes are, which are fractions of the upright image."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    assert opened(thumbnail_uri(file.getvalue())).size == upright_size(file.getvalue()) == (20, 40)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_short_number():
    assert [short_number(v) for v in (0, 0.00012345, 12.5, 1500, 2_500_000, 4e9)] == [
        "0",
        "0.0001234",
        "12.5",
        "1.5k",
        "2.5M",
        "4B",
    ]
