"""Models of parts: any field that is a module is one, of any depth, with its own kind, dtype and origin."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from clipjax.config import from_json, to_json
from clipjax.convert.express import differences
from clipjax.convert.pretrained import copies
from clipjax.errors import UserError
from clipjax.models import (
    boxed_params,
    example_batch,
    image_section,
    initialise,
    make_model,
    matmul_precision,
    model_parts,
    model_section,
    needs,
    text_section,
)
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.heads import image_features, l2_normalise, text_outputs
from clipjax.models.layer_inputs import Taps
from tests.models import transformer_oracle as oracle

TOWER = dict(width=8, depth=1, heads=2)
IMAGE = image_section(size=8, patch=4, **TOWER)
TEXT = text_section(length=5, vocab_size=11, end_token=10, **TOWER)
HERE = f"{__name__}:"
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8),
    "text": np.array([[1, 10, 0, 0, 0], [2, 3, 4, 10, 0]], np.int32),
    "sample_seed": np.array([1, 2], np.uint32),
}


class Student(DualEncoder, kw_only=True):
    """A model with a whole model as a part, a second text tower, and settings that are no numbers."""

    teacher: nn.Module
    text_no: nn.Module | None = None
    layers: tuple[int, ...] = (1, 2)
    rates: Any = None
    needs = ("image", "text", "labels")

    def __call__(self, batch, *, train=False):
        seed = batch["sample_seed"] if train else None
        outputs = super().__call__(batch, train=train)
        pooled, _, found = image_features(
            self.image, batch, seed, self.mean, self.std, taps=Taps(hidden=(-1,))
        )
        outputs["image_raw"], outputs["hidden"] = self.image_head(pooled), found["hidden"]
        outputs["teacher"] = self.teacher(batch)["image_embedding"]
        if self.text_no is not None:
            no = text_outputs(self.text_no, self.text_head, batch, seed)
            outputs["no_embedding"] = no["text_embedding"]
        return outputs


class Words(nn.Module):
    """A text tower of an experiment's own: no dtypes, a part within, a field called as a setting of models."""

    inner: nn.Module
    length: int
    attention: str = "none"

    @nn.compact
    def __call__(self, text, *, mask=None, sample_seed=None):
        pooled, tokens = self.inner(text, mask=mask, sample_seed=sample_seed)
        return nn.Dense(8)(pooled), tokens


def student(**settings):
    teacher = model_section(IMAGE, TEXT, embed_dim=6, dtype="bfloat16", attention="xla")
    settings = {"teacher": teacher, "text_no": TEXT, "embed_dim": 6} | settings
    return model_section(IMAGE, TEXT, HERE + "Student", **settings)


def test_parts_of_any_depth():
    config = student(teacher=model_section(IMAGE, TEXT, embed_dim=6, dtype="bfloat16"))
    names = [name for name, _ in model_parts(config)]
    below = ["teacher", "teacher.image", "teacher.text"]
    assert sorted(names) == sorted(["image", "text", "text_no", *below])
    assert names.index("teacher") < names.index("teacher.image")
    model = make_model(config)
    params = oracle.random_params(model, BATCH)
    assert {"image", "text", "text_no", "teacher", "logit_scale"} <= set(params)
    towers = {"image", "text", "image_head", "text_head", "logit_scale"}
    assert set(params["teacher"]) == towers
    outputs = jax.jit(lambda p, b: model.apply({"params": p}, b))(params, BATCH)
    raw = outputs["image_raw"]
    np.testing.assert_allclose(l2_normalise(raw), outputs["image_embedding"], rtol=1e-6)
    assert outputs["hidden"].shape == (2, 1, 5, 8)
    assert outputs["no_embedding"].shape == (2, 6)


def test_a_module_can_be_hashed_and_compared():
    settings = dict(layers=[3, [4]], rates={"a": [1, 2]})
    one, other = (make_model(from_json(to_json(student(**settings)))) for _ in range(2))
    assert hash(one) == hash(other)
    assert one == other
    assert one != make_model(student())
    assert (one.layers, one.rates["a"]) == ((3, (4,)), (1, 2))


def test_dtypes_and_computation_of_parts():
    config = student(attention="einsum", quantize="int8", dtype="float32")
    config.image.dtype, config.image.param_dtype = "bfloat16", "bfloat16"
    model = make_model(config)
    assert (model.image.dtype, model.image.param_dtype) == ("bfloat16", "bfloat16")
    assert (model.text.dtype, model.text_no.dtype, model.text_no.quantize) == (
        "float32",
        "float32",
        "int8",
    )
    teacher = model.teacher
    assert (teacher.dtype, teacher.image.dtype, teacher.text.attention) == (
        "bfloat16",
        "bfloat16",
        "causal",
    )
    assert (teacher.image.attention_impl, model.image.attention_impl) == ("xla", "einsum")
    assert teacher.image.quantize is None  # it says so


def test_products_are_precise_if_any_part_is_in_float32():
    precise = lambda c: bool(jnp.zeros(()).size) and matmul_precision(c)  # noqa: E731
    config = student(dtype="bfloat16")

    def set_to(config):
        with precise(config):
            return jax.config.jax_default_matmul_precision

    assert set_to(config) is None
    config.text_no.dtype = "float32"
    assert set_to(config) == set_to("float32") == "float32"


def test_towers_of_an_experiment():
    own = text_section(HERE + "Words", inner=TEXT, length=5)
    assert set(own) == {"kind", "inner", "length", "attention"}
    config = model_section(IMAGE, own, embed_dim=6)
    model = make_model(config)
    assert model.text.attention == "none"
    params = nn.unbox(boxed_params(model, example_batch(config)))
    assert {"inner", "Dense_0"} == set(params["text"])


def test_sections_of_open_kinds():
    config = student()
    assert config.layers == (1, 2)
    with pytest.raises(UserError, match="needs a part 'teacher'"):
        model_section(kind=HERE + "Student")
    with pytest.raises(UserError, match=r"no setting 'teachr' \(did you mean 'teacher'"):
        student(teachr=IMAGE)
    with pytest.raises(UserError, match="'image_encoder' has no text tower"):
        model_section(IMAGE, TEXT, kind="image_encoder")
    with pytest.raises(UserError, match="is not a class that derives from flax"):
        model_section(kind="math:sin")
    assert "text_no" not in model_section(kind=HERE + "Student", teacher=IMAGE)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher", {"width": 8}, r"config\.model\.teacher must be a section with a 'kind'"),
        ("teacher", "vit", r"config\.model\.teacher must be a section with a 'kind', not 'vit'"),
        ("teacher", None, r"needs a section config\.model\.teacher"),
        ("teacher", {"kind": "vitt"}, "did you mean 'vit'"),
        ("decoder", {"kind": "vit"}, "has no part 'decoder'"),
        ("regions", {"kind": "prompter"}, "has no region head"),
        ("teacher", {"kind": "dual_encoder", "image": {"kind": "vit"}}, r"model\.teacher\.text"),
        ("text_no", {"kind": "transformer", "dtype": "int8"}, r"model\.text_no\.dtype must be"),
        ("text_no", {"kind": "transformer", "param_dtype": "f"}, r"text_no\.param_dtype must be"),
        ("teacher", {"kind": "image_encoder", "attention": "xl"}, r"model\.teacher\.attention"),
        ("depth", 3, "has no setting 'depth'"),
    ],
    ids=str,
)
def test_refusals(field, value, message):
    config = student()
    config[field] = ConfigDict(value, type_safe=False) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        make_model(config)


def test_needs():
    assert needs(make_model(student())) == ("image", "text", "labels")
    assert needs(make_model(model_section(IMAGE, TEXT))) == ("image", "text")
    assert needs(make_model(model_section(IMAGE, kind="image_encoder"))) == ("image",)
    assert needs(nn.Dense(3)) == ()

    class Wrong(nn.Module):
        needs = "image"

    with pytest.raises(UserError, match=r":.*Wrong must be a tuple of names.*not 'image'"):
        needs(Wrong())


class WithWhole(DualEncoder):
    """Has parameters that only the whole batch reaches."""

    def setup(self):
        super().setup()
        self.projector = nn.Dense(3)

    def whole_batch(self, outputs, batch, *, train):
        return outputs | {"projected": self.projector(outputs["image_embedding"])}


def test_the_whole_batch_has_parameters():
    config = model_section(IMAGE, TEXT, HERE + "WithWhole", embed_dim=6)
    model = make_model(config)
    assert boxed_params(model, example_batch(config))["projector"]["kernel"].shape == (6, 3)
    params = jax.eval_shape(lambda k: initialise(model, k, BATCH), jax.random.key(0))
    plain = jax.eval_shape(lambda k: model.init(k, BATCH)["params"], jax.random.key(0))
    assert set(params) - set(plain) == {"projector"}
    assert {name: params[name] for name in plain} == plain


def test_differences_name_nested_settings():
    mine, theirs = student(), student()
    theirs.teacher.image.heads = 4
    theirs.text_no.unroll = 0
    assert differences(mine, theirs) == ["model.teacher.image.heads = 2 (it would be 4)"]


SHAPES = {
    "image": {"kernel": np.zeros((2, 3))},
    "head": {"kernel": np.zeros(3), "bias": np.zeros(1)},
    "momentum": {
        "image": {"kernel": np.zeros((2, 3))},
        "head": {"kernel": np.zeros(3), "bias": np.zeros(1)},
        "predictor": {"kernel": np.zeros(1)},
    },
}


def test_copies():
    init = {"momentum": {"copy": ""}, "momentum/predictor": "fresh"}
    wanted = {f"momentum/{p}": p for p in ("image/kernel", "head/kernel", "head/bias")}
    assert copies(init, SHAPES) == wanted
    assert copies({"momentum/head": {"copy": "head"}}, SHAPES) == {
        f"momentum/head/{leaf}": f"head/{leaf}" for leaf in ("kernel", "bias")
    }
    assert copies({}, SHAPES) == {}


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"momentum": {"copy": ""}}, r"there is no predictor/kernel.*\] = 'fresh'"),
        ({"momentum": {"copy": "imag"}}, r"copies a part 'imag' .*did you mean 'image'"),
        ({"moment": {"copy": ""}}, "part 'moment' that the model does not have"),
        ({"head/bias": {"copy": "head/kernel"}}, r"of shape \[1\] from head/kernel of shape \[3\]"),
        (
            {
                "head/bias": {"copy": "momentum/head/bias"},
                "momentum/head/bias": {"copy": "head/bias"},
            },
            "is itself a copy",
        ),
        ({"head": {"copy": "image", "path": "x"}}, r"must be a string, \{'path'"),
        ({"head": {"path": 3}}, r"must be a string, \{'path'"),
        ({"head": {"part": "image"}}, r"must be a string, \{'path'"),
    ],
    ids=str,
)
def test_refused_copies(init, message):
    with pytest.raises(UserError, match=message):
        copies(init, SHAPES)


class WithTokenizer(DualEncoder, kw_only=True):
    """A model with a setting that is a section."""

    tokenizer: Mapping[str, Any] = nn.FrozenDict(kind="clip_bpe")


def test_a_section_for_a_mapping_is_a_setting_and_no_part():
    section = model_section(IMAGE, TEXT, kind=f"{HERE}WithTokenizer", embed_dim=4)
    assert section.tokenizer.to_dict() == {"kind": "clip_bpe"}
    section.tokenizer = {"kind": "hf_json", "file": "tokenizer.json"}
    read = from_json(to_json(section))
    module = make_model(read)
    assert dict(module.tokenizer) == {"kind": "hf_json", "file": "tokenizer.json"}
    hash(module)
