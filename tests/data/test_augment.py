"""Random views: geometry, colours, and that all randomness is the caller's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipjax.data.augment import DEFAULTS, LUMA, fit_box, random_crop, recolour
from clipjax.data.augment import augment as view_and_geometry
from clipjax.data.encoded_image import EncodedImage
from clipjax.data.images import RESIZES, fit

NOTHING = DEFAULTS | {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}


def augment(image, size, settings, interpolation, rng):
    """The pixels of a view."""
    fitting = {"resize": "squash", "interpolation": interpolation}
    return view_and_geometry(EncodedImage(image), size, settings, fitting, rng)[0]


def pixels(height=16, width=16, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    st.integers(0, 99),
)
def test_random_crop_geometry(size, scale, ratio, seed):
    left, top, right, bottom = random_crop(size, tuple(scale), tuple(ratio), rng(seed))
    width, height = size
    slack = 1e-9 * (width + height)
    assert -slack <= left < right <= width + slack
    assert -slack <= top < bottom <= height + slack
    w, h = right - left, bottom - top
    share = w * h / (width * height)
    assert share <= scale[1] * (1 + 1e-9)
    if w < width - slack and h < height - slack:
        assert share >= scale[0] * (1 - 1e-9)
        assert ratio[0] * (1 - 1e-6) <= w / h <= ratio[1] * (1 + 1e-6)


def test_crops_are_everywhere():
    boxes = np.array([random_crop((100, 60), (0.2, 0.3), (0.8, 1.25), rng(i)) for i in range(300)])
    assert boxes[:, 0].min() < 5
    assert boxes[:, 2].max() > 95
    assert boxes[:, 1].min() < 3
    assert boxes[:, 3].max() > 57
    # The logarithm of the ratio is uniform, so wide and tall are as likely.
    ratio = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    assert abs(ratio.mean()) < 0.03


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 20))
def test_a_box_is_one_that_pil_takes(width, height, seed):
    settings = NOTHING | {"crop_scale": (0.05, 1.0), "crop_ratio": (0.3, 3.0)}
    view = augment(Image.new("RGB", (width, height)), 8, settings, "bicubic", rng(seed))
    assert view.shape == (8, 8, 3)
    assert view.dtype == np.uint8


def test_nothing_changes_nothing():
    image = pixels()
    assert np.array_equal(augment(Image.fromarray(image), 16, NOTHING, "bicubic", rng()), image)
    assert recolour(image, NOTHING, rng()) is image


def test_zero_strength_is_the_identity():
    """The affine map itself, not the short cut around it."""
    image = pixels()
    for tiny in ({"brightness": 1e-9}, {"contrast": 1e-9}, {"saturation": 1e-9}, {"hue": 1e-9}):
        assert np.array_equal(recolour(image, NOTHING | tiny, rng()), image)


def test_flip():
    image = pixels()
    flipped = augment(Image.fromarray(image), 16, NOTHING | {"flip": 1.0}, "bicubic", rng())
    assert np.array_equal(flipped, image[:, ::-1])
    both = [
        np.array_equal(
            augment(Image.fromarray(image), 16, NOTHING | {"flip": 0.5}, "bicubic", rng(i)),
            image,
        )
        for i in range(100)
    ]
    assert 30 < sum(both) < 70


def test_grey():
    image = pixels()
    grey = recolour(image, NOTHING | {"grayscale": 1.0}, rng())
    assert (grey == grey[..., :1]).all()
    expected = np.asarray(Image.fromarray(image).convert("L"))
    np.testing.assert_allclose(grey[..., 0].astype(int), expected, atol=1)


def test_brightness_contrast_saturation_hue():
    image = np.clip(pixels(), 60, 150)
    bright = recolour(image, NOTHING | {"brightness": 0.4}, rng(3)).astype(float)
    factor = bright.mean() / image.mean()
    assert 0.6 <= factor <= 1.4
    np.testing.assert_allclose(bright, image * factor, atol=1.5)

    flat = np.full((4, 4, 3), (90, 90, 90), np.uint8)
    contrast = recolour(flat, NOTHING | {"contrast": 0.9, "saturation": 0.9, "hue": 0.5}, rng(1))
    # A grey image without contrast has no contrast, saturation or hue to change.
    np.testing.assert_allclose(contrast.astype(int), flat, atol=1)

    turned = recolour(image, NOTHING | {"hue": 0.1}, rng(4)).astype(float)
    np.testing.assert_allclose(turned.sum(-1), image.sum(-1, dtype=float), atol=4)
    assert np.abs(turned - image).max() > 3

    faded = recolour(image, NOTHING | {"saturation": 0.9}, rng(5)).astype(float)
    np.testing.assert_allclose(faded @ LUMA, image.astype(float) @ LUMA, atol=2)


def test_background_and_rotation():
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert (augment(clear, 8, NOTHING, "bicubic", rng()) == 255).all()
    colours = {
        tuple(augment(clear, 8, NOTHING | {"background": "random"}, "bicubic", rng(i))[0, 0])
        for i in range(5)
    }
    assert len(colours) == 5
    # The corners that a rotation opens have the background's colour, not black.
    dark = Image.new("RGB", (32, 32), (200, 200, 200))
    turned = augment(dark, 32, NOTHING | {"rotate": 45.0}, "bicubic", rng(2))
    assert turned.min() >= 195


@pytest.mark.parametrize("seed", [0, 1])
def test_all_randomness_is_the_callers(seed):
    settings = NOTHING | {
        **{"crop_scale": (0.3, 1.0), "rotate": 20.0, "flip": 0.5, "background": "random"},
        **{"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1, "grayscale": 0.2},
    }
    image = Image.fromarray(pixels(20, 30, 4))
    first = augment(image, 16, settings, "bicubic", rng(seed))
    np.random.seed(99)  # noqa: NPY002 (must not matter)
    assert np.array_equal(augment(image, 16, settings, "bicubic", rng(seed)), first)
    assert not np.array_equal(augment(image, 16, settings, "bicubic", rng(seed + 7)), first)


# Views that show what evaluation shows


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("shape", [(40, 60), (61, 35), (32, 32)])
def test_fit_shows_what_evaluation_shows(resize, shape):
    smooth = np.asarray(Image.fromarray(pixels(4, 4)).resize(shape[::-1], Image.Resampling.BICUBIC))
    settings = NOTHING | {"crop": "fit"}
    fitting = {"resize": resize, "interpolation": "bicubic"}
    view, geometry = view_and_geometry(EncodedImage(smooth), 24, settings, fitting, rng())
    wanted = fit(Image.fromarray(smooth), 24, resize, "bicubic")
    # Sizes are whole pixels there and fractions here, and the order of the two passes differs.
    assert np.abs(view.astype(int) - wanted).mean() < 1.5
    left, top, right, bottom = fit_box(shape[::-1], 24, resize)
    corners = [[left / shape[1], top / shape[0]], [right / shape[1], bottom / shape[0]]]
    np.testing.assert_allclose(geometry.points(corners), [[0, 0], [1, 1]], atol=1e-6)
