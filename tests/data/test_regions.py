"""Boxes go where their pixels go; what is left of them is measured; M are drawn."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipjax.batch import example_batch
from clipjax.data.augment import DEFAULTS, augment
from clipjax.data.bad import BadRecord
from clipjax.data.encoded_image import EncodedImage
from clipjax.data.geometry import WHOLE, Geometry
from clipjax.data.regions import check_box_format, draw_regions
from clipjax.defaults import base_config
from clipjax.errors import UserError

PLAIN = DEFAULTS
REGIONS = {"count": 4, "min_visible": 0.25, "min_side": 0.0, "text_length": None}
FIT = {"resize": "longest", "interpolation": "bilinear"}

unit = st.integers(0, 1000).map(lambda n: n / 1000)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
)


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(record, geometry=WHOLE, size=(100, 50), seed=0, box_format="xyxy", **changes):
    return draw_regions(record, box_format, size, geometry, REGIONS | changes, rng(seed))


@st.composite
def chains(draw):
    """Any crops, flips, pads and rotations, as names of `Geometry`'s methods and their arguments."""
    found = []
    for step in draw(st.lists(st.sampled_from(["crop", "pad", "flip", "rotate"]), max_size=4)):
        if step == "flip":
            found.append(("flip",))
        elif step == "rotate":
            found.append(("rotate", draw(st.floats(-180, 180)), (120, 80)))
        else:
            low = draw(st.floats(0, 0.6) if step == "crop" else st.floats(-0.5, 0))
            high = low + draw(st.floats(0.3, 1 - low) if step == "crop" else st.floats(1 - low, 2))
            found.append(("crop", (low, low / 2, high, high)))
    return found


def chained(steps):
    geometry = WHOLE
    for name, *arguments in steps:
        geometry = getattr(geometry, name)(*arguments)
    return geometry


geometries = chains().map(chained)


@example([("crop", (0.25, 0, 0.75, 1)), ("crop", (-0.5, 0, 1.5, 1))], [0, 0, 1, 1])
@given(chains(), boxes)
def test_boxes_hold_the_points_that_are_left(steps, box):
    """A point is gone once a step has taken it out of the frame; nothing that comes after brings it back."""
    mapped, visible = chained(steps).boxes([box])
    along = np.linspace(0, 1, 41)
    x, y = box[0] + along * (box[2] - box[0]), box[1] + along * (box[3] - box[1])
    points = np.stack([g.ravel() for g in np.meshgrid(x, y)], axis=1)
    left, well_inside = np.ones(len(points), bool), np.ones(len(points), bool)
    for name, *arguments in steps:
        points = getattr(WHOLE, name)(*arguments).points(points)
        left &= ((points >= 0) & (points <= 1)).all(axis=1)
        well_inside &= ((points > 1e-3) & (points < 1 - 1e-3)).all(axis=1)
    assert 0 <= visible[0] <= 1 + 1e-6
    assert (mapped >= 0).all()
    assert (mapped <= 1).all()
    if min(box[2] - box[0], box[3] - box[1]) > 1e-3 and well_inside.any():
        assert visible[0] > 0
    if visible[0] == 0 or not left.any():
        return
    low, high = points[left].min(axis=0), points[left].max(axis=0)
    assert (low >= mapped[0, :2] - 1e-5).all()
    assert (high <= mapped[0, 2:] + 1e-5).all()
    if all(name != "rotate" for name, *_ in steps):
        # The bounds of a turned box are larger than what is seen of it; others reach to the next point at most.
        between = np.ptp(points, axis=0) / 40 + 1e-5
        assert (low - between <= mapped[0, :2]).all()
        assert (high + between >= mapped[0, 2:]).all()


@given(geometries, st.lists(boxes, min_size=1, max_size=5))
def test_flipping_twice_is_nothing(geometry, found):
    a, visible_a = geometry.boxes(found)
    b, visible_b = geometry.flip().flip().boxes(found)
    np.testing.assert_allclose(visible_a, visible_b, atol=1e-5)
    flipped, _ = geometry.flip().boxes(found)
    kept = visible_a > 1e-5  # else rounding decides whether anything is left
    np.testing.assert_allclose(a[kept], b[kept], atol=1e-5)
    mirrored = np.stack([1 - a[:, 2], a[:, 1], 1 - a[:, 0], a[:, 3]], axis=1)
    np.testing.assert_allclose(flipped[kept], mirrored[kept], atol=1e-5)


@given(boxes, st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_a_crop_and_the_crop_of_a_crop(box, left, top):
    """Two crops are one, and what remains of a box is the intersection."""
    once = WHOLE.crop((left, top, 1, 1)).crop((0, 0, 0.5, 0.5))
    direct = WHOLE.crop((left, top, (1 + left) / 2, (1 + top) / 2))
    np.testing.assert_allclose(once.matrix_2x3, direct.matrix_2x3, atol=1e-9)
    _, visible = direct.boxes([box])
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    across = max(0, min(x2, (1 + left) / 2) - max(x1, left))
    down = max(0, min(y2, (1 + top) / 2) - max(y1, top))
    if area > 1e-6:
        assert visible[0] == pytest.approx(across * down / area, abs=1e-4)


@example(48, 40, (0.5, 0.5, 0.375, 0.4375), False, 30.0, "fit", 614)  # turned into the padding
@settings(max_examples=60, deadline=None)
@given(
    st.integers(40, 90),
    st.integers(40, 90),
    st.tuples(st.floats(0.1, 0.5), st.floats(0.1, 0.5), st.floats(0.3, 0.45), st.floats(0.3, 0.45)),
    st.booleans(),
    st.sampled_from([0.0, 10.0, 30.0]),
    st.sampled_from(["random", "fit"]),
    st.integers(0, 1000),
)
def test_boxes_follow_the_pixels(width, height, corner, flip, rotate, crop, seed):
    """A black rectangle on white, through the whole augmentation, against its box."""
    x1, y1 = round(corner[0] * width), round(corner[1] * height)
    x2, y2 = x1 + round(corner[2] * width), y1 + round(corner[3] * height)
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[y1:y2, x1:x2] = 0
    chosen = PLAIN | {
        **{"crop": crop, "crop_scale": (0.5, 1.0), "flip": float(flip), "rotate": rotate}
    }
    side = 128
    view, geometry = augment(EncodedImage(pixels), side, chosen, FIT, rng(seed))
    box = np.array([[x1 / width, y1 / height, x2 / width, y2 / height]])
    mapped, visible = geometry.boxes(box)
    dark = (view < 128).all(axis=-1)
    if visible[0] < 0.2:
        return
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side
    # A pixel of the image may be several of the view's; the bounds of a turned box that is cut are larger than what
    # is seen of it.
    slack = 1.5 * max(1 / width, 1 / height) * 2.2
    if rotate and visible[0] < 1:
        assert (mapped[0, :2] <= seen[:2] + slack).all()
        assert (mapped[0, 2:] >= seen[2:] - slack).all()
    else:
        np.testing.assert_allclose(mapped[0], seen, atol=slack)


def test_a_box_that_touches_the_frame_is_outside():
    geometry = WHOLE.crop((0.5, 0.25, 0.875, 0.875))
    for moved in (geometry, geometry.flip(), geometry.flip().flip()):
        found, visible = moved.boxes([[0.0, 0.0, 0.5, 1.0]])
        assert (found == 0).all()
        assert (visible == 0).all()


def test_what_is_drawn():
    record = {
        "boxes": [
            [0.1, 0.1, 0.2, 0.2],
            [0.0, 0.0, 1.0, 1.0],
            [0.6, 0.6, 0.9, 0.9],
            [0.5, 0.5, 0.5, 0.6],
        ],
        "region_text": ["left", ["all", "everything"], "right", "without area"],
    }
    found, texts = draw(record)
    assert texts[0] == "left"
    assert texts[1] in ("all", "everything")
    assert texts[2:] == ["right"]
    assert found.dtype == np.float32
    right = WHOLE.crop((0.5, 0.5, 1, 1))
    found, texts = draw(record, right)
    assert texts[0] in ("all", "everything")  # a quarter of it is left
    assert texts[1:] == ["right"]
    np.testing.assert_allclose(found, [[0, 0, 1, 1], [0.2, 0.2, 0.8, 0.8]], atol=1e-6)
    assert draw(record, right, min_visible=0.3)[1] == ["right"]
    assert draw(record, right, min_side=0.7)[1] in (["all"], ["everything"])
    assert draw({})[1] == []
    assert draw({"boxes": [], "region_text": []})[0].shape == (0, 4)
    assert draw({"boxes": [[0, 0, 1, 1]], "region_text": [" "]})[1] == []


def test_each_region_is_as_likely():
    record = {
        "boxes": np.tile([[0.1, 0.1, 0.5, 0.5]], (8, 1)),
        "region_text": [str(i) for i in range(8)],
    }
    texts = [draw(record, seed=seed, count=2)[1] for seed in range(800)]
    assert all(a < b for a, b in texts)  # different ones, in order
    counts = np.bincount(np.array(texts, int).ravel(), minlength=8)
    assert counts.min() > 150
    assert counts.max() < 250


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("xyxy", [0.1, 0.2, 0.4, 0.8]),
        ("xywh", [0.1, 0.2, 0.3, 0.6]),
        ("xyxy_pixels", [10, 10, 40, 40]),
        ("xywh_pixels", [10, 10, 30, 30]),
    ],
)
def test_box_formats(box_format, box):
    record = {"boxes": [box], "region_text": ["it"]}
    found, _ = draw(record, box_format=box_format)
    np.testing.assert_allclose(found, [[0.1, 0.2, 0.4, 0.8]], atol=1e-6)


@pytest.mark.parametrize(
    "boxes", [[[0, 0, 1]], [[0, 0, 1, float("nan")]], ["abcd"], [[0, 0, 1, 1], [0, 0]], 3, "wxyz"]
)
def test_broken_boxes(boxes):
    with pytest.raises(BadRecord, match="boxes are not"):
        draw({"boxes": boxes, "region_text": ["it"]})


def test_texts_that_do_not_belong():
    with pytest.raises(BadRecord, match="not equally many"):
        draw({"boxes": [[0, 0, 1, 1]], "region_text": []})
    with pytest.raises(BadRecord, match="not equally many"):
        draw({"boxes": [[0, 0, 1, 1]]})
    with pytest.raises(BadRecord, match="neither a string"):
        draw({"boxes": [[0, 0, 1, 1]], "region_text": [[7]]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"count": 4, "min_visible": 2.0},
            "regions.min_visible is a fraction from 0 to 1, not 2.0",
        ),
        ({"count": 0}, "regions.count must be a whole number of at least 1, not 0"),
        ({}, "The feature 'regions' needs the setting"),
        ({"count": 1, "text_length": 0}, "text_length must be a whole number of at least 1"),
        ({"count": 1, "min_sid": 0.1}, "has no setting 'min_sid' .did you mean 'min_side'"),
    ],
)
def test_mistakes_in_settings(settings, message):
    config = base_config()
    config.data.features.regions = {"kind": "regions", **settings}
    with pytest.raises(UserError, match=message):
        example_batch(config)


def test_regions_need_an_image():
    config = base_config()
    config.data.features = {"regions": {"kind": "regions", "count": 1}}
    with pytest.raises(UserError, match="feature 'regions' follows the feature 'image', which"):
        example_batch(config)


def test_mistakes():
    with pytest.raises(UserError, match="did you mean 'xywh'"):
        check_box_format("xywhh", "the source 'coco'")


def test_composition_is_matrix_multiplication():
    a = Geometry(np.array([[1.0, 2, 3], [4, 5, 6]]))
    b = np.array([[2.0, 0, 1], [0, 3, 1]])
    full = np.vstack([b, [0, 0, 1]]) @ np.vstack([a.matrix_2x3, [0, 0, 1]])
    np.testing.assert_allclose(a.then(b).matrix_2x3, full[:2])
