"""A trained model as a library: loading it, and what goes in and comes out."""

import io
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import clipjax
from clipjax import rules
from clipjax.cli import main
from clipjax.convert.source import open_source
from clipjax.data.images import fit, flatten
from clipjax.encode.encoder import Encoder
from clipjax.errors import UserError
from clipjax.mesh import make_mesh

TEXTS = ["a cat", "two dogs in the snow", "a cat"]


@pytest.fixture(scope="module")
def model(tiny_run):
    return clipjax.load(tiny_run)


@pytest.fixture(scope="module")
def imgs():
    """Three sizes; the last one half transparent."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*s, 3), np.uint8) for s in ((16, 16), (20, 31))]
    alpha = rng.integers(0, 256, (9, 12, 4), np.uint8)
    alpha[:, :6, 3] = 0
    return [*arrays, alpha]


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def leaves(model):
    return {path: np.asarray(leaf) for path, leaf in rules.paths(model.params).items()}


def test_load_takes_workdir_folder_or_checkpoint(tiny_run, model):
    newest = leaves(model)
    for path in (tiny_run / "checkpoints", tiny_run / "checkpoints" / "32", str(tiny_run)):
        for name, leaf in leaves(clipjax.load(path)).items():
            np.testing.assert_array_equal(leaf, newest[name])
    older = leaves(clipjax.load(tiny_run / "checkpoints" / "16"))
    assert not np.array_equal(older["image/stem/kernel"], newest["image/stem/kernel"])


def test_load_refusals(tiny_run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        clipjax.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a checkpoint: neither a run of clipjax, nor"):
        clipjax.load(tmp_path)
    (tmp_path / "file.pt").write_bytes(b"torch")
    with pytest.raises(UserError, match=r"file\.pt.* is "):
        clipjax.load(tmp_path / "file.pt")


def changed_config(tiny_run, folder, change):
    """A copy of the run's last checkpoint whose `model` section `change` has edited."""
    shutil.copytree(tiny_run / "checkpoints" / "32", folder)
    (file,) = (
        p for p in (folder / "meta").rglob("*") if p.is_file() and b"samples" in p.read_bytes()
    )
    meta = json.loads(file.read_text())
    change(meta["config"]["model"])
    file.write_text(json.dumps(meta))
    return folder


def test_load_names_parameters_that_do_not_fit(tiny_run, tmp_path):
    folder = changed_config(tiny_run, tmp_path / "32", lambda m: m.update(embed_dim=4))
    with pytest.raises(
        UserError, match=r"image_head/out/kernel has shape \[16, 8\].*wants \[16, 4\]"
    ):
        clipjax.load(folder)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_average_is_used(tiny_run, model):
    folder = tiny_run / "checkpoints" / "32"
    with ocp.PyTreeCheckpointer() as reader:
        average = {k: np.asarray(v) for k, v in reader.restore(folder / "train")["ema"].items()}
    with ocp.StandardCheckpointer() as reader:
        last = reader.restore(folder / "params")
    for name, leaf in leaves(model).items():
        np.testing.assert_array_equal(leaf, average[name])
    kernel = np.asarray(last["image"]["stem"]["kernel"])
    assert np.abs(kernel - average["image/stem/kernel"]).max() > 1e-3


def test_config_scale_and_tokenizer_come_along(model):
    assert model.config.model.embed_dim == 8
    assert model.config.total_samples == 32
    assert model.logit_scale == pytest.approx(math.exp(float(model.params["logit_scale"])))
    assert model.tokenizer.length == 8
    assert model.tokenizer(["a cat"])[0, 0] == 49406


def test_images_in_every_form_are_the_same(model, imgs, tmp_path):
    wanted = model.encode_image(imgs)
    assert wanted.shape == (3, 8)
    assert wanted.dtype == np.float32
    assert isinstance(wanted, np.ndarray)
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-6)
    assert not np.allclose(wanted[0], wanted[1], atol=1e-3)
    files = []
    for i, array in enumerate(imgs):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(png(array))
    forms = {
        "PIL": [Image.fromarray(a) for a in imgs],
        "bytes": [png(a) for a in imgs],
        "paths": files,
        "names": list(map(str, files)),
        "mixed": [files[0], png(imgs[1]), imgs[2]],
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(model.encode_image(form), wanted, err_msg=name)


def test_pixels_and_tokens_are_the_same_inputs(model, imgs):
    size = model.config.model.image.size
    settings = model.config.preprocess.to_dict()
    bytes_ = np.stack([fit(flatten(Image.fromarray(a)), size, **settings) for a in imgs])
    mean, std = (np.float32(model.config.model[k]) for k in ("mean", "std"))
    pixels = (bytes_.astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(model.encode_pixels(pixels), model.encode_image(imgs), atol=1e-5)
    tokens = model.tokenizer(TEXTS)
    np.testing.assert_array_equal(model.encode_tokens(tokens), model.encode_text(TEXTS))
    np.testing.assert_array_equal(model.encode_tokens(tokens.tolist()), model.encode_text(TEXTS))


def test_padding_to_whole_batches_changes_nothing(model, imgs):
    arguments = model.module, model.config, model.tokenizer, make_mesh()
    small = Encoder(*arguments, batch_size=8)
    images, texts = (imgs * 4)[:11], [f"image {i}" for i in range(11)]
    many = small.images(model.params, images), small.texts(model.params, texts)
    np.testing.assert_allclose(many[0], model.encode_image(images), atol=1e-6)
    np.testing.assert_allclose(many[1], model.encode_text(texts), atol=1e-6)
    for i in (0, 7, 8, 10):
        alone = model.encode_image([images[i]]), model.encode_text([texts[i]])
        np.testing.assert_allclose(alone[0][0], many[0][i], atol=1e-6)
        np.testing.assert_allclose(alone[1][0], many[1][i], atol=1e-6)


def test_nothing_in_nothing_out(model):
    assert model.encode_image([]).shape == (0, 8)
    assert model.encode_text([]).shape == (0, 8)
    assert model.encode_text([]).dtype == np.float32


def test_refused_texts(model):
    for texts, message in {
        ("a cat", ""): "Text 1 is empty",
        (" \n",): "Text 0 is empty",
    }.items():
        with pytest.raises(UserError, match=message):
            model.encode_text(list(texts))
    with pytest.raises(UserError, match=r"write encode_text\(\[text\]\)"):
        model.encode_text("a cat")


def test_refused_images(model, imgs, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png' does not exist"):
        model.encode_image([tmp_path / "nowhere.png"])
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), png(imgs[0])):
        with pytest.raises(UserError, match=r"write encode_image\(\[image\]\)"):
            model.encode_image(one)
    with pytest.raises(UserError, match="Image 1 cannot be used: image format not recognised"):
        model.encode_image([imgs[0], b"not an image"])
    with pytest.raises(UserError, match="Image 0 cannot be used: image is truncated"):
        model.encode_image([png(imgs[1])[:-200]])
    with pytest.raises(UserError, match="Image 0 cannot be used: image array is not uint8"):
        model.encode_image([imgs[0] / 255])
    with pytest.raises(UserError, match="give uint8 images to encode_image"):
        model.encode_pixels(imgs[0][None])
    with pytest.raises(UserError, match=r"takes images \[16, 16, 3\], not \[8, 8, 3\]"):
        model.encode_pixels(np.zeros((1, 8, 8, 3), np.float32))


def test_refused_tokens(model):
    with pytest.raises(UserError, match="from 0 to 49407"):
        model.encode_tokens(np.array([[0, 49408]]))
    with pytest.raises(UserError, match=r"ids \[n, L\]"):
        model.encode_tokens(np.array([1, 2]))
    with pytest.raises(UserError, match="whole numbers"):
        model.encode_tokens(np.array([[1.5, 2.0]]))
    with pytest.raises(UserError, match="at most 8 tokens, not 9"):
        model.encode_tokens(np.full((1, 9), 49407))
    with pytest.raises(UserError, match=r"Row 1 of the ids has no end token \(49407\)"):
        model.encode_tokens(np.array([[5, 49407, 0], [5, 6, 7], [49407, 0, 0]]))


def test_checkpoints_of_before_these_settings_load(tiny_run, model, tmp_path):
    def older(section):
        del section["attention"], section["quantize"]

    found = clipjax.load(changed_config(tiny_run, tmp_path / "32", older))
    np.testing.assert_array_equal(found.encode_text(TEXTS), model.encode_text(TEXTS))


def test_attention_is_the_loading_machine_s_matter(tiny_run, model, tmp_path):
    """The run's may have been a kernel that this machine does not run."""
    path = changed_config(tiny_run, tmp_path / "32", lambda m: m.update(attention="splash"))
    found = clipjax.load(path)
    np.testing.assert_array_equal(found.encode_text(TEXTS), model.encode_text(TEXTS))


def test_compute_dtype_can_be_chosen(tiny_run, model, imgs):
    half = clipjax.load(tiny_run, dtype="bfloat16")
    found = half.encode_image(imgs)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - model.encode_image(imgs)).max() < 0.05
    with pytest.raises(UserError, match=r"model\.dtype must be"):
        clipjax.load(tiny_run, dtype="fp16")


def test_any_mesh_gives_the_same(tiny_run, model, imgs):
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    split = clipjax.load(tiny_run, mesh=mesh)
    kernel = split.params["text"]["token_embedding"]
    assert kernel.addressable_shards[0].data.shape == (49408 // 2, 8)
    np.testing.assert_allclose(split.encode_image(imgs), model.encode_image(imgs), atol=1e-5)
    np.testing.assert_allclose(split.encode_text(TEXTS), model.encode_text(TEXTS), atol=1e-5)


def test_training_goes_on_after_loading(tiny_run, tmp_path):
    """A model in use does not disturb its run: going on from 16 samples ends where the whole run did."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    shutil.rmtree(workdir / "checkpoints" / "32")
    loaded = clipjax.load(workdir)
    before = loaded.encode_text(TEXTS)
    config = Path(__file__).parent / "tiny_config.py"
    assert main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    np.testing.assert_array_equal(loaded.encode_text(TEXTS), before)
    found, wanted = (open_source(path).params for path in (workdir, tiny_run))
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name].read(), wanted[name].read(), err_msg=name)
    results = [json.loads((path / "results.json").read_text()) for path in (workdir, tiny_run)]
    assert results[0] == results[1]
