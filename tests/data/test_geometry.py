"""Where points and boxes go: maps there and back, and the frame that evaluation shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from clipjax.data.augment import fit_geometry
from clipjax.data.bad import BadRecord
from clipjax.data.geometry import WHOLE
from clipjax.data.images import decode, fit, upright_size

numbers = st.floats(-1, 2, allow_nan=False)
sides = st.integers(8, 400)


@st.composite
def geometries(draw):
    """Up to four maps, one after another."""
    found = WHOLE
    for kind in draw(st.lists(st.sampled_from(["crop", "flip", "rotate"]), max_size=4)):
        if kind == "crop":
            left, top = draw(st.floats(-0.5, 0.5)), draw(st.floats(-0.5, 0.5))
            right, bottom = left + draw(st.floats(0.2, 1.5)), top + draw(st.floats(0.2, 1.5))
            found = found.crop((left, top, right, bottom))
        elif kind == "flip":
            found = found.flip()
        else:
            found = found.rotate(draw(st.floats(-180, 180)), (draw(sides), draw(sides)))
    return found


@given(geometries(), st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_points_come_back(geometry, points):
    there = geometry.points(np.array(points))
    np.testing.assert_allclose(geometry.inverse().points(there), points, atol=1e-9)
    again = geometry.inverse().inverse().matrix_2x3
    np.testing.assert_allclose(again, geometry.matrix_2x3, atol=1e-12)


@given(geometries(), st.tuples(numbers, numbers), st.tuples(numbers, numbers), st.floats(0, 1))
def test_straight_lines_stay_straight(geometry, a, b, share):
    between = share * np.array(a) + (1 - share) * np.array(b)
    mapped = geometry.points(np.array([a, b, between]))
    np.testing.assert_allclose(
        mapped[2], share * mapped[0] + (1 - share) * mapped[1], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("resize", "crop_fraction"),
    [("shortest", 1.0), ("shortest", 0.875), ("squash", 1.0), ("longest", 1.0)],
)
@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(24, 150), st.integers(24, 150)), data=st.data())
def test_boxes_go_where_evaluation_puts_their_pixels(resize, crop_fraction, size, data):
    """A white rectangle on black is found in the frame where its box is said to be."""
    width, height = size
    x1, y1 = data.draw(st.integers(0, width - 12)), data.draw(st.integers(0, height - 12))
    x2 = data.draw(st.integers(x1 + 10, width))
    y2 = data.draw(st.integers(y1 + 10, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    side = 96
    frame = fit(Image.fromarray(pixels), side, resize, "bilinear", crop_fraction).astype(float)
    geometry = fit_geometry(size, side, resize, crop_fraction)
    box = np.array([x1 / width, y1 / height, x2 / width, y2 / height])
    (found,), (visible,) = geometry.boxes(box)
    if resize == "longest":  # its padding is white, too
        inside, _ = geometry.boxes(np.array([0, 0, 1, 1]))
        left, top, right, bottom = np.round(inside[0] * side).astype(int)
        frame[:, :left] = frame[:, right:] = frame[:top] = frame[bottom:] = 0
    # The share of light in each row and column, so that blurred edges count as parts of pixels.
    share = frame[..., 0] / 255
    if visible == 0:
        assert share.sum() < 3 * side  # at most the blur of what is just outside
        return
    wide, high = (found[2] - found[0]) * side, (found[3] - found[1]) * side
    if min(wide, high) < 4:  # at the frame's edge blur takes much of so thin a strip
        return
    assert abs(share.sum(axis=1).max() - wide) < 1.5
    assert abs(share.sum(axis=0).max() - high) < 1.5
    rows, columns = np.indices(share.shape) + 0.5
    middle = [(columns * share).sum() / share.sum(), (rows * share).sum() / share.sum()]
    wanted = [(found[0] + found[2]) / 2 * side, (found[1] + found[3]) / 2 * side]
    np.testing.assert_allclose(middle, wanted, atol=1)


def test_fit_geometry_by_hand():
    # 200 x 100 in a frame of 50: padded to 50 x 25, twelve empty rows above and thirteen below.
    padded = fit_geometry((200, 100), 50, "longest").points(np.array([[0, 0], [1, 1]]))
    np.testing.assert_allclose(padded, [[0, 12 / 50], [1, 37 / 50]])
    # Its middle half of the width is what a centre crop shows.
    cut = fit_geometry((200, 100), 50, "shortest").points(np.array([[0.25, 0], [0.75, 1]]))
    np.testing.assert_allclose(cut, [[0, 0], [1, 1]])
    np.testing.assert_allclose(fit_geometry((200, 100), 50, "squash").matrix_2x3, WHOLE.matrix_2x3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size_is_the_decoded_size(orientation, tmp_path):
    image, exif = Image.new("RGB", (12, 7)), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in ("a.jpg", "a.png", "a.webp"):
        image.save(tmp_path / name, exif=exif)
        data = (tmp_path / name).read_bytes()
        assert upright_size(data) == decode(data).size
    assert upright_size(np.zeros((5, 9, 3), np.uint8)) == (9, 5)
    assert upright_size(Image.new("L", (3, 4))) == (3, 4)


def test_upright_size_refuses_what_is_no_image():
    for bad in (b"", b"not an image", np.zeros((4, 4), np.uint8)):
        with pytest.raises(BadRecord):
            upright_size(bad)
