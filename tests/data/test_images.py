"""Decoding whatever is called an image, and fitting it into the model's frame."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipjax.data import images
from clipjax.data.bad import BadRecord
from clipjax.data.images import decode, fit, flatten
from clipjax.errors import UserError


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=20, height=12, mode="RGB"):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(pixels)
    return (image if "A" in mode else image.convert("RGB")).convert(mode)


def bomb(width, height):
    """A PNG of a few bytes that claims to be so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD = {
    "zero bytes": (b"", "zero bytes"),
    "text": (b"<html>not found</html>", "not recognised"),
    "truncated jpeg": (encode(photo(64, 64), "JPEG")[:-200], "truncated or broken"),
    "truncated png": (encode(photo(64, 64))[:-3000], "truncated or broken"),
    "header only": (encode(photo(), "JPEG")[:30], "not recognised"),
    "bomb": (bomb(40_000, 40_000), "pixels"),
    "large": (bomb(20_000, 6_000), "pixels"),
    "no pixels": (bomb(10, 10), "truncated or broken"),
    "none": (None, "there is no image"),
    "string": ("cat.png", "neither bytes, array nor image"),
    "float array": (np.zeros((4, 4, 3)), "not uint8"),
    "grey array": (np.zeros((4, 4), np.uint8), "not uint8"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), "not uint8"),
    "empty array": (np.zeros((0, 4, 3), np.uint8), "not uint8"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("error")
def test_bad_images(name):
    image, reason = BAD[name]
    with pytest.raises(BadRecord, match=reason):
        decode(image)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"]),
)
def test_any_bytes_are_a_image_or_bad(data, start):
    try:
        image = decode(start + data)
    except BadRecord:
        return
    assert image.mode in ("RGB", "RGBA")


@given(st.integers(0, 500), st.integers(0, 255))
def test_a_flipped_byte_is_a_image_or_bad(place, value):
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        data = bytearray(encode(photo(), kind))
        data[place % len(data)] = value
        with contextlib.suppress(BadRecord):
            assert decode(bytes(data)).mode in ("RGB", "RGBA")


@pytest.mark.parametrize(
    ("source", "kind", "mode"),
    [
        ("RGB", "PNG", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("LA", "PNG", "RGBA"),
        ("L", "PNG", "RGB"),
        ("1", "PNG", "RGB"),
        ("P", "PNG", "RGB"),
        ("P", "GIF", "RGB"),
        ("CMYK", "JPEG", "RGB"),
        ("CMYK", "TIFF", "RGB"),
        ("YCbCr", "JPEG", "RGB"),
        ("RGBA", "WEBP", "RGBA"),
        ("I;16", "PNG", "RGB"),
        ("F", "TIFF", "RGB"),
    ],
)
def test_modes(source, kind, mode):
    image = photo(mode="L" if source in ("I;16", "F") else source)
    if source in ("I;16", "F"):
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257).convert(source)
    decoded = decode(encode(image, kind))
    assert decoded.mode == mode
    assert decoded.size == (20, 12)


def test_sixteen_bits_keep_their_brightness():
    grey = np.linspace(0, 65535, 40).astype(np.uint16).reshape(4, 10)
    decoded = np.asarray(decode(encode(Image.fromarray(grey))))
    np.testing.assert_allclose(decoded[..., 0], grey / 257, atol=1)
    assert (decoded[..., 0] == decoded[..., 2]).all()


def test_cmyk_colours():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    red = np.asarray(decode(encode(image, "TIFF")))
    np.testing.assert_allclose(red[4, 4], (255, 0, 0), atol=3)


def test_transparent_palette():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 2), 1)
    decoded = decode(encode(image, "PNG", transparency=0))
    assert decoded.mode == "RGBA"
    assert decoded.getpixel((0, 0))[3] == 0
    assert decoded.getpixel((1, 2)) == (0, 255, 0, 255)
    white = np.asarray(flatten(decoded))
    assert white[0, 0].tolist() == [255, 255, 255]
    assert white[2, 1].tolist() == [0, 255, 0]


def test_transparent_colour():
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((1, 0), (200, 0, 0))
    decoded = decode(encode(image, "PNG", transparency=(9, 9, 9)))
    assert np.asarray(flatten(decoded)).tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_exif_orientation():
    image = Image.new("RGB", (6, 4), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    assert decode(encode(image, "JPEG", exif=exif)).size == (4, 6)


def test_arrays_and_images_pass():
    pixels = np.asarray(photo(mode="RGBA"))
    assert np.array_equal(np.asarray(decode(pixels)), pixels)
    assert np.array_equal(np.asarray(decode(Image.fromarray(pixels))), pixels)
    assert decode(memoryview(encode(photo()))).size == (20, 12)


def test_flatten_blends():
    pixel = np.array([[[100, 0, 0, 128]]], np.uint8)
    assert np.asarray(flatten(decode(pixel))).tolist() == [[[177, 127, 127]]]
    black = np.asarray(flatten(decode(pixel), (0, 0, 0)))
    np.testing.assert_allclose(black, [[[50, 0, 0]]], atol=1)


def torchvision_fit(image, size):
    """torchvision's Resize(size) then CenterCrop(size), by the formulas of its functional_pil module (0.28)."""
    short, long = sorted(image.size)
    new = tuple(size if side == short else int(size * long / short) for side in image.size)
    resized = image.resize(new, Image.BICUBIC)
    top, left = round((new[1] - size) / 2.0), round((new[0] - size) / 2.0)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "size",
    [(20, 12), (12, 20), (33, 17), (17, 33), (101, 67), (16, 16), (5, 9), (16, 23), (500, 3)],
)
def test_shortest_is_torchvisions_rule(size):
    image = photo(*size)
    np.testing.assert_array_equal(fit(image, 16, "shortest", "bicubic"), torchvision_fit(image, 16))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 24), st.sampled_from(images.RESIZES))
def test_fit_gives_the_frame(width, height, size, resize):
    fitted = fit(Image.new("RGB", (width, height), (10, 20, 30)), size, resize, "bilinear")
    assert fitted.shape == (size, size, 3)
    assert fitted.dtype == np.uint8
    if resize != "longest":
        # Nothing was added at the edges.
        assert (fitted == (10, 20, 30)).all()
    else:
        assert (fitted == (10, 20, 30)).all(axis=-1).any()


def test_squash_and_longest():
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    assert not fit(image, 8, "squash", "bicubic").any()
    longest = fit(image, 8, "longest", "bicubic")
    assert (longest[:2] == 255).all()
    assert not longest[2:6].any()
    assert (longest[6:] == 255).all()


def test_unknown_settings():
    with pytest.raises(UserError, match=r"cannot be 'shortst' .did you mean 'shortest'"):
        fit(photo(), 8, "shortst", "bicubic")
    with pytest.raises(UserError, match=r"cannot be 'bicubik' .did you mean 'bicubic'"):
        fit(photo(), 8, "shortest", "bicubik")


def test_long_and_thin():
    """One row of a million pixels would be 224 x 224 million before the centre is cut out."""
    thin = Image.new("RGB", (1_000_000, 1))
    with pytest.raises(BadRecord, match="too long and thin"):
        fit(thin, 224, "shortest", "bicubic")
    assert fit(thin, 224, "longest", "bicubic").shape == (224, 224, 3)
