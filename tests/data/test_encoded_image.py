"""Scaled decoding shows what the whole decoding shows; what libjpeg-turbo does not take goes to Pillow."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipjax.data.bad import REASONS, BadRecord
from clipjax.data.encoded_image import EncodedImage
from clipjax.data.images import INTERPOLATIONS, decode
from clipjax.data.resize import resize


def photo(width=160, height=120, seed=0):
    """Smooth, as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_the_whole_jpeg_is_pillows():
    data = encoded(photo(), quality=95)
    found = EncodedImage(data).pixels()
    # Two builds of one decoder.
    assert np.abs(found.astype(int) - np.asarray(decode(data))).max() <= 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 2.0))
def test_scaled_decoding(width, height, scale):
    img = EncodedImage(encoded(photo(width, height), quality=95))
    assert img.size == (width, height)
    found = img.pixels(scale)
    assert found.dtype == np.uint8
    assert min(width, scale * width) <= found.shape[1] <= width
    assert min(height, scale * height) <= found.shape[0] <= height


def test_scaling_leaves_out_what_is_not_needed():
    data = encoded(photo(1600, 1200), quality=95)
    assert EncodedImage(data).pixels(0.26).shape == (600, 800, 3)  # 3/8 would take longer
    small = EncodedImage(data).pixels(0.2)
    assert small.shape == (300, 400, 3)
    wanted = np.asarray(decode(data).resize((400, 300), Image.Resampling.BOX), int)
    assert np.abs(small - wanted).max() < 12
    assert np.abs(small - wanted).mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_colour_spaces(mode):
    image = photo().convert(mode)
    data = encoded(image, quality=95)
    found = EncodedImage(data).pixels(0.5)
    whole = np.asarray(decode(data).resize(found.shape[1::-1], Image.Resampling.BOX), int)
    assert np.abs(found - whole).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), exif=exif)
    img = EncodedImage(data)
    upright = decode(data)
    assert img.size == upright.size == ((160, 120) if orientation < 5 else (120, 160))
    assert np.array_equal(img.pixels(0.3), np.asarray(upright))


def test_transparent_images_lie_on_the_background():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (EncodedImage(encoded(image, "PNG")).pixels(1.0, (10, 20, 30)) == (10, 20, 30)).all()


@pytest.mark.parametrize("cut", [20, 200, 0.3, 0.9])
def test_truncated_jpegs(cut):
    data = encoded(photo(), quality=90)
    data = data[: cut if isinstance(cut, int) else int(cut * len(data))]
    with pytest.raises(BadRecord) as error:
        EncodedImage(data).pixels(0.5)
    assert str(error.value) in REASONS[:4]


def test_what_pillow_takes_with_a_warning_is_taken():
    """Bytes between segments, which libjpeg only warns of."""
    data = encoded(photo(), quality=90)
    odd = data[:-2] + b"\x00\x00\x00" + data[-2:]
    assert np.abs(EncodedImage(odd).pixels().astype(int) - np.asarray(decode(odd))).max() <= 2


def test_bombs():
    data = bytearray(encoded(photo(), quality=90))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"  # 65,535 x 65,535
    with pytest.raises(BadRecord, match="more than 100,000,000 pixels"):
        EncodedImage(bytes(data))


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300), st.integers(0, 600), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"])
)
def test_any_damage_is_a_image_or_a_reason(noise, place, format):
    data = encoded(photo(40, 30), format)
    data = data[:place] + noise + data[place + len(noise) :]
    reason, pixels = None, None
    try:
        pixels = EncodedImage(data).pixels(0.7)
    except BadRecord as error:
        reason = str(error)
    assert reason in REASONS or (pixels.dtype == np.uint8 and pixels.shape[2] == 3)


# Resampling


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("size", "target"), [((160, 120), (64, 64)), ((90, 200), (32, 48)), ((20, 20), (64, 64))]
)
def test_resampling_is_pillows(interpolation, size, target):
    image = photo(*size)
    box = (2.3, 1.7, size[0] - 3.1, size[1] - 0.4)
    found = resize(np.asarray(image), box, target, interpolation).astype(int)
    wanted = np.asarray(image.resize(target, INTERPOLATIONS[interpolation], box=box), int)
    # The order of the passes differs, and each rounds to 8 bits and clips.
    assert np.abs(found - wanted).max() <= (4 if interpolation == "lanczos" else 2)
    assert np.abs(found - wanted).mean() < 0.3


def test_resampling_writes_into_memory_of_its_own():
    found = resize(np.asarray(photo()), (0, 0, 160, 120), (8, 8), "bicubic")
    found[:] = 0  # may be changed
    assert found.flags.owndata or found.base is not None
