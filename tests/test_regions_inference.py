"""Regions of a trained model: boxes in, embeddings out; texts in, boxes out."""

import io

import jax
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from PIL import ExifTags, Image

import clipjax
from clipjax.data.images import fit
from clipjax.defaults import base_config
from clipjax.encode.encoder import Encoder
from clipjax.encode.regions import SLOTS
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.models import (
    boxed_params,
    example_batch,
    image_section,
    make_model,
    model_section,
    region_section,
    text_section,
)

SIDE = 16
COUNTS = (0, 3, SLOTS[-1] + 6, 1, 5)


class Letters:
    """A tokenizer of ten letters."""

    length = 4

    def __call__(self, texts):
        return np.array([[ord(c) for c in text.ljust(4)] for text in texts], np.int32).reshape(
            -1, 4
        )


class Echo:
    """Stands for a model: a region's embedding is its box, and a text's box is its letters."""

    pool_regions = None

    def __init__(self):
        self.rows = []

    def apply(self, variables, batch, method=None):
        self.rows.append((batch["image"].shape, batch.get("boxes", batch.get("region_text")).shape))
        if method == "pool_regions":
            return batch["boxes"][..., ::-1]
        if "region_text" in batch:
            return {"grounded_boxes": (batch["region_text"] - 97) / 10}
        return {"region_embedding": batch["boxes"] + 0 * batch["image"].mean()}


def echo(resize="longest", **image):
    config = base_config()
    image = {"size": SIDE, "patch": 4, **image}
    config.model = ConfigDict(
        {"image": image, "text": {}, "regions": {"kind": "prompter"}, "embed_dim": 4}
        | {"dtype": "float32"}
    )
    config.preprocess.resize = resize
    model = Echo()
    return model, Encoder(model, config, Letters(), make_mesh(), batch_size=8)


@pytest.fixture(scope="module")
def prompter():
    """Encoder and parameters of a tiny model with a Prompter."""
    config = base_config()
    image = image_section(size=SIDE, patch=4, width=16, depth=1, heads=2, pool="average")
    text = text_section(length=8, width=16, depth=1, heads=2)
    regions = region_section("prompter", mlp_ratio=2.0, remat="none")
    config.model = model_section(
        image, text, kind="region_dual_encoder", regions=regions, embed_dim=8
    )
    config.preprocess.resize = "longest"
    model = make_model(config.model)
    shapes = boxed_params(model, example_batch(config.model))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), nn.unbox(shapes)
    )
    mesh = make_mesh(devices=jax.devices()[:2])
    return model, params, Encoder(model, config, None, mesh, batch_size=8)


def draw(counts=COUNTS, seed=0):
    """Images of several sizes, and that many boxes of each."""
    rng = np.random.default_rng(seed)
    images = [
        rng.integers(0, 256, (*rng.integers(12, 40, 2), 3), np.uint8) for _ in range(len(counts))
    ]
    low = [rng.uniform(0, 0.6, (n, 2)) for n in counts]
    return images, [np.hstack([a, a + rng.uniform(0.1, 0.4, a.shape)]) for a in low]


def framed(box, size):
    """A box of an image of (width, height) in a frame that it is padded into, in the frame's pixels, by hand."""
    longest = max(size)
    inside = [max(1, round(side * SIDE / longest)) for side in size]
    before = [(SIDE - n) // 2 for n in inside]
    return [box[k] * inside[k % 2] + before[k % 2] for k in range(4)]


def test_boxes_are_mapped_into_the_frame_and_come_in_order():
    images, boxes = draw()
    model, encoder = echo()
    found = encoder.regions(None, images, boxes)
    pooled = encoder.regions(None, images, boxes, "roi_align")
    assert [x.shape for x in found] == [(n, 4) for n in COUNTS]
    for image, some, out, other in zip(images, boxes, found, pooled, strict=True):
        assert out.dtype == np.float32
        size = image.shape[1::-1]
        wanted = np.array([framed(box, size) for box in some]).reshape(-1, 4) / SIDE
        np.testing.assert_allclose(out, wanted, atol=1e-6)
        np.testing.assert_array_equal(other, out[:, ::-1])
    # One program for each number of slots, the larger ones with fewer images; none for the image without boxes.
    shapes = {boxes[1]: image[0] for image, boxes in model.rows}
    assert shapes.keys() == set(SLOTS)
    assert len(model.rows) == 2 * len(SLOTS)


def test_a_centre_crop_maps_boxes_too_and_hides_some():
    _, encoder = echo("shortest")
    image = np.zeros((20, 40, 3), np.uint8)
    boxes = np.array([[0.25, 0, 0.75, 1], [0, 0.5, 0.5, 1], [0.8, 0, 1, 1], [0, 0, 0.25, 1]])
    (seen,) = encoder.visible([image], [boxes])
    assert seen.tolist() == [True, True, False, False]
    (found,) = encoder.regions(None, [image], [boxes[seen]])
    np.testing.assert_allclose(found, [[0, 0, 1, 1], [0, 0.5, 0.5, 1]], atol=1e-6)
    with pytest.raises(UserError, match=r"Box 2 of image 1 lies outside.*how='crop'"):
        encoder.regions(None, [image, image], [boxes[:2], boxes])
    assert encoder.visible([image], [boxes], "crop")[0].all()


def test_boxes_refer_to_the_upright_image(tmp_path):
    """An image that is stored lying on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    _, encoder = echo("shortest")
    boxes = np.array([[0, 0.25, 1, 0.75], [0, 0, 1, 0.2]])  # it is 20 wide and 40 high
    for image in (tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()):
        assert encoder.visible([image], [boxes])[0].tolist() == [True, False]
        (found,) = encoder.regions(None, [image], [boxes[:1]])
        np.testing.assert_allclose(found, [[0, 0, 1, 1]], atol=1e-6)


def test_a_box_too_thin_to_be_cut_out():
    _, encoder = echo("shortest", size=224)
    image = np.zeros((4000, 64, 3), np.uint8)
    boxes = [[0, 0, 1, 1], [0.5, 0, 0.51, 1]]  # the second is one pixel wide
    assert encoder.visible([image], [boxes], "crop")[0].tolist() == [True, False]
    with pytest.raises(UserError, match="Box 1 of image 0 is too long and thin"):
        encoder.regions(None, [image], [boxes], "crop")


def test_towers_whose_tokens_are_no_patches():
    image, box = np.zeros((8, 8, 3), np.uint8), [[0, 0, 1, 1]]
    for tower, message in (
        ({"pool": "attention"}, "queries, not patches.*how='crop'"),
        ({"kind": "resnet"}, "without its attention pooling.*how='crop'"),
    ):
        _, encoder = echo(**tower)
        with pytest.raises(UserError, match=message):
            encoder.check_regions("roi_align")
        with pytest.raises(UserError, match=message):
            encoder.regions(None, [image], [box], "roi_align")


def test_a_region_head_says_whether_it_finds_texts():
    def encoder(kind):
        config = base_config()
        config.model = ConfigDict(
            {"image": {"size": SIDE}, "text": {}, "regions": {"kind": kind}}
            | {"embed_dim": 4, "dtype": "float32"}
        )
        return Encoder(Echo(), config, Letters(), make_mesh(), batch_size=8)

    encoder("prompter").check_ground()
    encoder("clipjax.models.regions.prompter:Prompter").check_ground()
    with pytest.raises(UserError, match="cannot find the box of a text"):
        encoder("roi_align").check_ground()


def test_grounded_boxes_come_back_into_the_image():
    _, encoder = echo()
    images = [np.zeros((16, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)]
    # The first image fills the frame's rows from 4 to 12 of 16: letters a to k are 0 to 1 of the frame.
    found = encoder.ground(None, images, [["acki", "aafc", "ffff"], []])
    assert [x.shape for x in found] == [(3, 4), (0, 4)]
    first = [0, (0.2 - 0.25) / 0.5, 1, (0.8 - 0.25) / 0.5]
    np.testing.assert_allclose(found[0][0], np.clip(first, 0, 1), atol=1e-6)
    np.testing.assert_allclose(found[0][1], [0, 0, 0.5, 0], atol=1e-6)  # above the image
    np.testing.assert_allclose(found[0][2], [0.5] * 4, atol=1e-6)
    many = encoder.ground(None, images, [["aabb"] * 70, ["bbcc", "aaff"]])
    np.testing.assert_allclose(many[1], [[0.1, 0.1, 0.2, 0.2], [0, 0, 0.5, 0.5]], atol=1e-6)
    assert many[0].shape == (70, 4)


def test_naflex_images_keep_their_shape():
    _, encoder = echo(positions="naflex")
    images, boxes = draw((2, 0, 3))
    for some, out in zip(boxes, encoder.regions(None, images, boxes), strict=True):
        np.testing.assert_allclose(out, some, atol=1e-6)
    with pytest.raises(UserError, match="NaFlex model has others; embed regions with how='crop'"):
        encoder.regions(None, images, boxes, "roi_align")


def test_any_number_of_boxes_is_one_at_a_time(prompter):
    model, params, encoder = prompter
    images, boxes = draw((0, 3, SLOTS[0] + 1, 1))
    pixels = [fit(Image.fromarray(x), SIDE, "longest", "bicubic") for x in images]

    @jax.jit
    def alone(image, box):
        batch = {"image": image[None], "boxes": box[None, None]}
        head = model.apply({"params": params}, batch)["region_embedding"][0, 0]
        return head, model.apply({"params": params}, batch, method="pool_regions")[0, 0]

    for how, which in (("model", 0), ("roi_align", 1)):
        found = encoder.regions(params, images, boxes, how)
        for image, array, some, out in zip(images, pixels, boxes, found, strict=True):
            assert out.shape == (len(some), 8)
            np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
            for box, row in zip(some, out, strict=True):
                place = np.float32(framed(box, image.shape[1::-1])) / SIDE
                np.testing.assert_allclose(row, alone(array, place)[which], atol=1e-5)
        again = encoder.regions(params, images[2:3], [boxes[2][-2:]], how)
        np.testing.assert_allclose(again[0], found[2][-2:], atol=1e-5)


def test_crops_are_images(prompter):
    _, params, encoder = prompter
    images, boxes = draw((2, 0, 11, 1), seed=1)
    found = encoder.regions(params, images, boxes, "crop")
    assert [len(x) for x in found] == [2, 0, 11, 1]
    for image, some, out in zip(images, boxes, found, strict=True):
        height, width = image.shape[:2]
        for box, row in zip(some, out, strict=True):
            x1, y1 = int(box[0] * width), int(box[1] * height)
            x2, y2 = -int(-box[2] * width // 1), -int(-box[3] * height // 1)
            wanted = encoder.images(params, [np.ascontiguousarray(image[y1:y2, x1:x2])])[0]
            np.testing.assert_allclose(row, wanted, atol=1e-5)
    # A box thinner than a pixel is that pixel.
    (thin,) = encoder.regions(params, images[:1], [[[0.5, 0, 0.5001, 1]]], "crop")
    assert thin.shape == (1, 8)
    whole = encoder.regions(params, images, [[[0, 0, 1, 1]]] * 4, "crop")
    np.testing.assert_allclose(np.concatenate(whole), encoder.images(params, images), atol=1e-6)


def test_nothing_in_nothing_out(prompter):
    _, params, encoder = prompter
    image = np.zeros((8, 8, 3), np.uint8)
    for how in ("model", "roi_align", "crop"):
        assert encoder.regions(params, [], [], how) == []
        (found,) = encoder.regions(params, [image], [np.zeros((0, 4))], how)
        assert found.shape == (0, 8)
        assert found.dtype == np.float32
        assert encoder.regions(params, [image], [[]], how)[0].shape == (0, 8)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[[0, 0, 1, 1]]], "1 arrays of boxes for 2 images"),
        ([[], [0, 0, 1, 1]], r"boxes of image 1 are not \[m, 4\] finite"),
        ([[], [[0, 0, 1]]], r"boxes of image 1 are not \[m, 4\]"),
        ([[], [[0, 0, 1, np.nan]]], r"boxes of image 1 are not \[m, 4\]"),
        ([[], "box"], r"boxes of image 1 are not \[m, 4\]"),
        ([[[0, 0, 1, 1], [10, 20, 30, 40]], []], r"Box 1 of image 0, \(10, 20, 30, 40\), is not"),
        ([[[0, 0, 0, 1]], []], r"Box 0 of image 0, \(0, 0, 0, 1\), has no area"),
        ([[], [[0.5, 0.5, 0.2, 0.9]]], "x1 < x2"),
    ],
)
def test_refused_boxes(boxes, message):
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    _, encoder = echo()
    for how in ("model", "roi_align", "crop"):
        with pytest.raises(UserError, match=message):
            encoder.regions(None, images, boxes, how)
        with pytest.raises(UserError, match=message):
            encoder.visible(images, boxes, how)


def test_refused_images_and_texts(tmp_path):
    _, encoder = echo()
    image, box = np.zeros((8, 8, 3), np.uint8), [[0, 0, 1, 1]]
    for how in ("model", "crop"):
        with pytest.raises(UserError, match="Image 1 cannot be used: image format"):
            encoder.regions(None, [image, b"text"], [box, box], how)
    with pytest.raises(UserError, match=r"nowhere\.png' does not exist"):
        encoder.visible([tmp_path / "nowhere.png"], [box])
    with pytest.raises(UserError, match=r"how='croop' .did you mean 'crop'"):
        encoder.regions(None, [image], [box], "croop")
    with pytest.raises(UserError, match="Text 1 of image 0 is empty"):
        encoder.ground(None, [image], [["abcd", " "]])
    with pytest.raises(UserError, match="texts of image 0 are a string"):
        encoder.ground(None, [image], ["abcd"])
    with pytest.raises(UserError, match="2 lists of texts for 1 images"):
        encoder.ground(None, [image], [[], []])


def test_a_loaded_clip_has_regions_without_a_head(tiny_run):
    model = clipjax.load(tiny_run)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    boxes = [[[0, 0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.8]]]
    (pooled,) = model.encode_regions([image], boxes, how="roi_align")
    (cut,) = model.encode_regions([file.getvalue()], boxes, how="crop")
    assert pooled.shape == cut.shape == (2, 8)
    assert np.abs(pooled - cut).max() > 1e-3
    np.testing.assert_allclose(cut[:1], model.encode_image([image[:10, :15]]), atol=1e-6)
    with pytest.raises(UserError, match=r"no region head; .*how='roi_align' or how='crop'"):
        model.encode_regions([image], boxes)
    with pytest.raises(UserError, match="cannot find the box of a text"):
        model.ground([image], [["a cat"]])
    with pytest.raises(UserError, match=r"write encode_regions\(\[image\], \[boxes\]\)"):
        model.encode_regions("a.png", boxes)
    with pytest.raises(UserError, match=r"write ground\(\[image\], \[\[text\]\]\)"):
        model.ground([image], "a cat")
