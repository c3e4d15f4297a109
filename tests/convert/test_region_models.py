"""Region models leave as plain CLIPs, and start from them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax import linen as nn

import clipjax
from clipjax import checkpoint
from clipjax.cli import main
from clipjax.config import to_json
from clipjax.convert import formats, orbax
from clipjax.convert.command import convert, write_theirs
from clipjax.convert.express import differences, identity
from clipjax.convert.files import Tensor
from clipjax.convert.parts import without
from clipjax.convert.positions import resample_grid
from clipjax.convert.pretrained import TOWERS, load_pretrained
from clipjax.convert.shapes import parameter_shapes
from clipjax.convert.source import open_source
from clipjax.data.presets import PRESETS
from clipjax.data.tokenizers import make_tokenizer
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.models import (
    boxed_params,
    image_section,
    make_model,
    model_section,
    region_section,
    text_section,
)
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.layers import parameter
from clipjax.rules import paths

# What OpenAI's files can say as well: heads 64 wide, QuickGELU.
HOW = dict(width=64, depth=1, heads=1, activation="quick_gelu")


def clip(kind="region_dual_encoder", size=16, length=8, head="prompter", **image):
    """A `model` section."""
    parts = dict(
        image=image_section(size=size, patch=8, **HOW | image),
        text=text_section(length=length, **HOW),
    )
    if kind == "region_dual_encoder":
        parts["regions"] = region_section(head)
    return model_section(kind=kind, embed_dim=12, **parts)


def write(folder, model):
    """A checkpoint of clipjax with numbers in it."""
    config = base_config()
    config.model = model
    PRESETS["clip"].apply(config)
    params = {}
    for seed, (path, leaf) in enumerate(paths(parameter_shapes(model)).items()):
        array = np.random.default_rng(seed).normal(0, 0.3, leaf.shape).astype(np.float32)
        params[path] = Tensor(array.shape, array.dtype, lambda array=array: array)
    packed = checkpoint.pack_tokenizer(make_tokenizer({"kind": "clip_bpe"}, model.text.length))
    meta = {"samples": 8, "config": json.loads(to_json(config)), "versions": {}}
    orbax.write(epath.Path(folder), params, meta, packed)
    return folder


@pytest.fixture(scope="module")
def region_model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("regions") / "checkpoint", clip())


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain") / "checkpoint", clip("dual_encoder"))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    tokens = np.array([[49406, 320, 2368, 49407, 0, 0, 0, 0], [49406, 7, 49407, 0, 0, 0, 0, 0]])
    return rng.normal(size=(3, 16, 16, 3)).astype(np.float32), tokens


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path].read(), wanted[path].read(), err_msg=path)


def refused(call, *arguments, **settings):
    with pytest.raises(UserError) as error:
        call(*arguments, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_other_format_takes_a_region_model(region_model, tmp_path):
    source = open_source(region_model)
    for name in formats.FORMATS:
        said = refused(write_theirs, source, tmp_path / "x", name, None)
        assert said.startswith(f"{name} has no place for this model's part 'regions'")
        assert "--without=regions leaves it out" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["clipjax", "openai", "open_clip", "hugging_face"])
def test_a_plain_clip_is_written(region_model, tmp_path, capsys, to):
    target = tmp_path / "plain"
    arguments = [f"--source={region_model}", f"--target={target}", f"--to={to}"]
    assert main(["convert", *arguments, "--without=regions"]) == 0
    whole, found = open_source(region_model), open_source(target)
    left_out = [path for path in whole.params if path.startswith("regions/")]
    said = capsys.readouterr().out
    assert f"Left out: regions ({len(left_out)} tensors)" in said
    assert "what is left is of the kind 'dual_encoder'" in said
    assert f"{len(left_out)} tensors left out as asked, no other of the source left over" in said
    assert found.config.model.kind == "dual_encoder"
    assert "regions" not in found.config.model
    assert differences(clip("dual_encoder"), found.config.model) == []
    same(found.params, {p: t for p, t in whole.params.items() if p not in left_out})


def test_its_embeddings_are_the_same(region_model, tmp_path, inputs):
    pixels, tokens = inputs
    assert (
        convert(str(region_model), str(tmp_path / "x"), to="hugging_face", left_out=["regions"])
        == 0
    )
    wanted, found = clipjax.load(region_model), clipjax.load(tmp_path / "x")
    np.testing.assert_array_equal(found.encode_pixels(pixels), wanted.encode_pixels(pixels))
    np.testing.assert_array_equal(found.encode_tokens(tokens), wanted.encode_tokens(tokens))
    assert found.logit_scale == wanted.logit_scale
    assert found.encode_text(["a cat"]).shape == (1, 12)


def test_one_tower_is_left(region_model, tmp_path, inputs):
    whole = open_source(region_model)
    image = without(whole, ["text", "regions"])
    assert image.config.model.kind == "image_encoder"
    assert image.tokenizer is None
    assert {path.split("/")[0] for path in image.params} == {"image", "image_head"}
    text = without(whole, ["regions", "image"])
    assert text.config.model.kind == "text_encoder"
    assert {path.split("/")[0] for path in text.params} == {"text", "text_head"}
    assert "image_head, logit_scale" in text.notes[-1]
    parts = ["regions", "text"]
    assert convert(str(region_model), str(tmp_path / "x"), to="hugging_face", left_out=parts) == 0
    described = json.loads((tmp_path / "x" / "config.json").read_text())
    assert described["architectures"] == ["CLIPVisionModelWithProjection"]
    found = clipjax.load(tmp_path / "x").encode_pixels(inputs[0])
    np.testing.assert_array_equal(found, clipjax.load(region_model).encode_pixels(inputs[0]))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["region"], "The model has no part 'region' (did you mean 'regions'?)"),
        (["image_head"], "The model has no part 'image_head'"),
        (["text"], "Without text there is image, regions left, and no kind of model is that"),
        (["image", "text", "regions"], "there is nothing left, and no kind of model is that"),
    ],
)
def test_what_cannot_be_left_out(region_model, parts, said):
    assert said in refused(without, open_source(region_model), parts)


class WithCentres(DualEncoder):
    """A model as an experiment has it."""

    def setup(self):
        super().setup()
        self.class_centres = parameter(
            self, "class_centres", nn.initializers.zeros, (5, 12), (None, "embed"), "float32"
        )


def test_a_part_of_an_experiment_s_own_model(tmp_path):
    model = clip("dual_encoder", length=4)
    model.kind = f"{__name__}:WithCentres"
    source = open_source(write(tmp_path / "x", model))
    plain = without(source, ["class_centres"])
    assert differences(plain.config.model, clip("dual_encoder", length=4)) == []
    assert source.params.keys() - plain.params.keys() == {"class_centres"}
    said = refused(without, source, ["text"])
    assert "Without text the model still has class_centres" in said
    assert "--without=text,class_centres leaves that out, too" in said
    assert "class_centres" not in without(source, ["text", "class_centres"]).params


def test_a_format_of_one_tower_says_how_to_leave_out_the_other(plain_model, tmp_path):
    said = refused(convert, str(plain_model), str(tmp_path / "x"), to="timm")
    assert "timm has no text towers" in said
    assert "--without=text leaves it out" in said


@pytest.mark.parametrize("head", ["prompter", "roi_align"])
def test_clipjax_s_own_format_takes_it_whole(tmp_path, head):
    source = write(tmp_path / "source", clip(head=head))
    assert convert(str(source), str(tmp_path / "larger"), size=24, length=10) == 0
    whole, larger = open_source(source), open_source(tmp_path / "larger")
    model = larger.config.model
    assert (model.image.size, model.text.length, model.regions.kind) == (24, 10, head)
    changed = {p for p, t in whole.params.items() if t.shape != larger.params[p].shape}
    assert changed == {"image/position_embedding", "text/position_embedding"}
    same(
        {p: t for p, t in larger.params.items() if p not in changed},
        {p: t for p, t in whole.params.items() if p not in changed},
    )


def test_a_region_model_is_no_plain_one():
    model = clip()
    assert "model.regions.kind = 'prompter' (it would be None)" in differences(
        model, clip("dual_encoder")
    )
    assert differences(model, clip(head="roi_align")) == [
        "model.regions.kind = 'prompter' (it would be 'roi_align')"
    ]
    other = clip()
    other.regions.update(remat="none", unroll=0)
    assert identity(model) == identity(other)
    other.regions.mlp_ratio = 2.0
    assert differences(model, other) == ["model.regions.mlp_ratio = 4.0 (it would be 2.0)"]


def started(init, model=None):
    model = clip() if model is None else model
    init = {part: str(n) if isinstance(n, Path) else n for part, n in init.items()}
    return load_pretrained({"init": init, "model": model}, parameter_shapes(model))


def test_a_region_model_starts_from_a_plain_clip(plain_model, tmp_path, capsys):
    """Of any format; what is new in it must be said, and all else comes along, the logit scale too."""
    said = refused(started, {"": plain_model})
    assert "does not fit the model: regions is missing; what is to start anew is said" in said
    assert "config.init['regions'] = 'fresh'" in said
    assert convert(str(plain_model), str(tmp_path / "theirs"), to="open_clip") == 0
    wanted = open_source(plain_model).params
    for path in (plain_model, tmp_path / "theirs"):
        found = started({"": path, "regions": "fresh"})
        assert found.keys() == wanted.keys() == paths(parameter_shapes(clip("dual_encoder"))).keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, wanted[name].read(), err_msg=name)
    assert "config.init" not in capsys.readouterr().err
    assert started({"regions": "fresh"}) == {}


def test_the_longest_key_says_where_a_parameter_comes_from(region_model, plain_model):
    init = {"": plain_model, "regions": region_model, "image": region_model, "image_head": "fresh"}
    found = started(init | {"image/transformer": plain_model})
    plain, region = open_source(plain_model).params, open_source(region_model).params
    assert not any(path.startswith("image_head/") for path in found)
    for path, array in found.items():
        theirs = path.startswith(("regions/", "image/"))
        theirs &= not path.startswith("image/transformer/")
        np.testing.assert_array_equal(array, (region if theirs else plain)[path].read())
    assert {path.split("/")[0] for path in found} == {
        *("image", "text", "text_head", "regions", "logit_scale"),
    }


def norm():
    """What a package might hold."""
    return {"scale": np.full(64, 2.0, np.float32), "bias": np.ones(64, np.float32)}


def test_weights_of_a_package_but_for_a_part(monkeypatch):
    monkeypatch.setitem(TOWERS, "norm", f"{__name__}:norm")
    found = started({"text/norm_post": "norm", "text/norm_post/bias": "fresh"})
    assert list(found) == ["text/norm_post/scale"]
    np.testing.assert_array_equal(found["text/norm_post/scale"], norm()["scale"])


def test_a_plain_clip_starts_from_a_region_model_without_its_regions(region_model, tmp_path):
    said = refused(started, {"": region_model}, clip("dual_encoder"))
    assert "regions is left over; clipjax convert --without=regions makes" in said
    assert "config.init names a part 'regions'" in refused(
        started, {"": region_model, "regions": "fresh"}, clip("dual_encoder")
    )


def test_images_of_another_size(plain_model, capsys):
    found = started({"": plain_model, "regions": "fresh"}, clip(size=32))
    said = capsys.readouterr().err
    assert "image/position_embedding is resampled from 5 to 17 rows (bicubic_antialias)" in said
    old = open_source(plain_model).params["image/position_embedding"].read()
    np.testing.assert_array_equal(
        found["image/position_embedding"], resample_grid(old, 4, "bicubic_antialias", 1)
    )


def test_texts_of_another_length(plain_model):
    said = refused(started, {"": plain_model, "regions": "fresh"}, clip(length=12))
    assert "text/position_embedding has shape [8, 64], the model wants [12, 64]" in said
    assert "clipjax convert --length=12 makes one for texts of 12 tokens" in said


def test_what_else_is_not_as_it_was_is_told(plain_model, capsys):
    other = clip(activation="gelu")
    started({"text": plain_model}, other)
    assert "config.init" not in capsys.readouterr().err
    started({"": plain_model, "regions": "fresh"}, other)
    said = capsys.readouterr().err
    assert "model.image.activation is 'gelu' here and was 'quick_gelu'" in said
    assert said.count(" was ") == 1


@pytest.mark.parametrize(
    ("init", "model", "said"),
    [
        ({"": "PLAIN", "regions": "frsh"}, {}, "'frsh' is neither a checkpoint nor a pretrained"),
        ({"": "PLAIN", "region": "fresh"}, {}, "names a part 'region' that the model does not"),
        ({"regions": "PLAIN"}, {}, "has no part 'regions'"),
        ({"": "PLAIN", "regions": 0}, {}, "config.init['regions'] must be a string, {'path'"),
        ({"": "PLAIN", "regions": "fresh"}, dict(width=128), "kernel has shape [8, 8, 3, 64]"),
        ({"": "PLAIN", "regions": "fresh"}, dict(pool="average"), "image/class_token is left over"),
    ],
)
def test_mistakes(plain_model, init, model, said):
    init = {part: str(plain_model) if name == "PLAIN" else name for part, name in init.items()}
    assert said in refused(started, init, clip(**model))


class WithParts(DualEncoder, kw_only=True):
    """Has a whole model as a part, and a second text tower; and reads what no tower does."""

    teacher: nn.Module
    text_no: nn.Module
    needs = ("image", "text", "extra")

    @nn.compact
    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        self.teacher(batch), self.text_no(batch["text"])
        return outputs | {"counted": nn.Dense(2, name="count")(batch["extra"])}


def with_parts(teacher=None, **image):
    plain = clip("dual_encoder", size=image.get("size", 16))
    return model_section(
        plain.image,
        plain.text,
        f"{__name__}:WithParts",
        embed_dim=12,
        text_no=plain.text,
        teacher=clip("dual_encoder", **image) if teacher is None else teacher,
    )


TEACHER = {"teacher": {"part": ""}, "text_no": {"part": "text"}}


def started_with(plain_model, model, **more):
    init = {part: {"path": str(plain_model)} | e for part, e in (TEACHER | more).items()}
    side = model.image.size
    batch = EXTRA | {"image": jax.ShapeDtypeStruct((1, side, side, 3), "uint8")}
    shapes = nn.unbox(boxed_params(make_model(model), batch))
    return load_pretrained({"init": init, "model": model}, shapes)


EXTRA = {
    "text": jax.ShapeDtypeStruct((1, 8), "int32"),
    "extra": jax.ShapeDtypeStruct((1, 3), "float32"),
}


def test_parts_are_filled_from_another_part(plain_model, capsys):
    """A teacher from a checkpoint's root, a second text tower from its text tower."""
    model, preset = with_parts(), PRESETS["clip"]
    model.teacher.update(mean=preset.mean, std=preset.std)  # which the checkpoint was written with
    found = started_with(plain_model, model)
    assert "config.init" not in capsys.readouterr().err
    source = open_source(plain_model).params
    names = {f"teacher/{p}": p for p in source}
    names |= {p.replace("text", "text_no", 1): p for p in source if p.startswith("text/")}
    assert found.keys() == names.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, source[names[path]].read(), err_msg=path)


def test_a_filled_part_is_compared_and_resampled(plain_model, capsys):
    started_with(plain_model, with_parts(size=32, activation="gelu"))
    said = capsys.readouterr().err
    assert "teacher/image/position_embedding is resampled from 5 to 17 rows" in said
    assert "model.teacher.image.activation is 'gelu' here and was 'quick_gelu'" in said
    assert "text_no" not in said
    said = refused(started_with, plain_model, with_parts(), text_no={"part": "txt"})
    assert "has no part 'txt' (did you mean 'text'?)" in said
    other = with_parts(clip("dual_encoder").copy_and_resolve_references())
    other.teacher.embed_dim = 10
    said = refused(started_with, plain_model, other)
    assert "teacher/image_head/out/kernel has shape [64, 12], the model wants [64, 10]" in said


def test_a_package_s_tower_within_a_part(monkeypatch):
    monkeypatch.setitem(TOWERS, "norm", f"{__name__}:norm")
    shapes = {"a": {"b": {"scale": np.zeros(64)}}}
    init = {"a/b/scale": {"path": "norm", "part": "scale"}}
    found = load_pretrained({"init": init, "model": clip()}, shapes)
    np.testing.assert_array_equal(found["a/b/scale"], norm()["scale"])


def test_a_checkpoint_of_a_model_that_reads_other_fields():
    """Its shapes come from what its run's features make."""
    model, config = with_parts(), base_config()
    config.model = model
    config.data.features = {
        "image": {"kind": "image"},
        "text": {"kind": "text"},
        "extra": {"kind": "column", "shape": (3,), "dtype": "float32"},
    }
    shapes = paths(parameter_shapes(model, config))
    assert shapes["count/kernel"].shape == (3, 2)
    assert shapes["teacher/logit_scale"].shape == ()
