"""What a format cannot express is refused in one sentence that names the field, before anything is read or written."""

import pytest

from clipjax.convert import formats, timm_models, timm_names
from clipjax.convert.command import convert
from clipjax.convert.express import differences
from clipjax.convert.formats.open_clip import repairs
from clipjax.convert.source import open_source
from clipjax.data.presets import PRESETS
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.models import image_section, model_section, text_section
from clipjax.models.variants import model_config
from tests.convert.parity_cases import GOLDENS, register_timm


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("open_clip_eva02_base", "hugging_face", "model.image.rope = 'eva'"),
        ("open_clip_resnet", "hugging_face", "model.image.kind = 'resnet'"),
        ("open_clip_vit", "openai", "heads that are 64 wide, and model.image.width = 36"),
        ("hugging_face_clip_gelu", "long_clip", "heads that are 64 wide"),
        ("open_clip_coca", "big_vision", "model.image.pool"),
        ("hugging_face_siglip2_naflex", "open_clip", "model.image.positions = 'naflex'"),
        ("hugging_face_dinov2", "openai", "has no text tower"),
        ("hugging_face_bert", "open_clip", "has no image tower"),
        ("hugging_face_mlcd", "timm", "model.image.rope = 'mlcd'"),
        ("timm_dinov2_reg4", "hugging_face", "model.image.class_position = False"),
        ("clip_moe", "openai", "model.image.experts"),
        ("openai_vit", "clip_moe", "is for models with experts"),
        ("openai_resnet", "big_vision", "resnet"),
    ],
)
def test_the_field_is_named(their, tmp_path, monkeypatch, name, to, said):
    register_timm(GOLDENS[name], monkeypatch)
    with pytest.raises(UserError) as error:
        convert(str(their(name)), str(tmp_path / "x"), to=to)
    message = str(error.value)
    assert said in message
    assert message.endswith(".")
    assert message.count("\n") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("resize", "to", "said"),
    [
        ("longest", "hugging_face", "no image processor for preprocess.resize='longest'"),
        (
            "squash",
            "openai",
            "cannot express preprocess.resize = 'squash' (it would be 'shortest')",
        ),
    ],
)
def test_so_is_what_is_done_to_images(their, resize, to, said):
    source = open_source(their("openai_vit"))
    source.config.preprocess.resize = resize
    with pytest.raises(UserError) as error:
        formats.get(to).export(source.config, None, {})
    assert said in str(error.value)


MOE = {"image.experts": 4, "image.moe_layers": 6, "text.length": 248}


@pytest.mark.parametrize(
    ("name", "changed", "to", "said"),
    [
        # One field each, of models that the format has otherwise.
        ("ViT-B-32", {}, "openai", "model.text.activation = 'gelu' (it would be 'quick_gelu')"),
        ("ViT-B-32-quickgelu", {"text.end_token": 7}, "openai", "text.end_token = 7 (it would be"),
        ("ViT-B-32-quickgelu", {"text.heads": 4}, "openai", "text.heads = 4 (it would be 8)"),
        ("ViT-B-32-quickgelu", {"text.mlp_ratio": 3.0}, "openai", "mlp_ratio = 3.0 (it would be"),
        ("ViT-B-32-quickgelu", {}, "long_clip", "model.text.length = 77 (it would be 248)"),
        ("ViT-B-32-quickgelu", MOE, "clip_moe", "text.experts = 0 (it would be 4)"),
        ("ViT-B-32", {"init_bias": -10.0}, "hugging_face", "init_bias = -10.0 (it would be None)"),
        ("ViT-B-32", {"image.stem": "conv"}, "hugging_face", "image.stem = 'conv'"),
        ("ViT-B-32", {"image.stem": "conv"}, "open_clip", "image.stem = 'conv'"),
        ("ViT-B-32", {"image.activation": "silu"}, "hugging_face", "activation = 'silu'"),
        ("ViT-B-32", {"image.registers": 4}, "hugging_face", "image.registers = 4 (it would be 0)"),
        ("ViT-B-32", {"image_projection": "mlp"}, "open_clip", "image_projection = 'mlp'"),
        ("ViT-B-32", {"text.pool": "map"}, "open_clip", "text.pool = 'map' (it would be 'eot')"),
        ("ViT-B-32", {"text.experts": 4}, "open_clip", "text.experts = 4 (it would be 0)"),
        ("ViT-B-16-SigLIP", {"image.activation": "gelu"}, "big_vision", "image.activation"),
        # open_clip has these image towers as models of timm only: the nearest is named.
        ("ViT-B-32", {"image.registers": 4}, "open_clip", "'vit_base_patch32_clip_224', cannot"),
        (
            "ViT-B-16-SigLIP",
            {},
            "open_clip",
            "'vit_base_patch16_siglip_224', cannot express model.",
        ),
        ("ViT-SO400M-16-SigLIP2-256", {"image.size": 320}, "open_clip", "size = 320 (it would be"),
    ],
)
def test_one_field_is_named(name, changed, to, said):
    config = base_config()
    config.model = model_config(name)
    PRESETS["siglip" if "SigLIP" in name else "clip"].apply(config)
    config.model.update_from_flattened_dict(changed)
    with pytest.raises(UserError) as error:
        formats.get(to).export(config, None, {})
    message = str(error.value)
    assert said in message
    assert message.endswith(".")
    # Both towers of the plain CLIP have the other activation; else nothing but that field is wrong.
    assert message.count("(it would be") <= (2 if to == "openai" else 1)


def test_what_says_nothing_of_a_model_is_no_difference():
    """A text tower that reads its last token has no end token, whatever its section says; open fields are settled."""
    model = model_config("ViT-B-16-SigLIP")
    other = model_config("ViT-B-16-SigLIP")
    other.text.update(end_token=3, experts_per_token=7, pad_id=1)
    other.image.update(class_token=False, class_position=False, pool_heads=12, pool_queries=3)
    assert differences(model, other) == []
    other.image.pool_heads = 6
    assert differences(model, other) == ["model.image.pool_heads = 12 (it would be 6)"]
    clip, plain = model_config("ViT-B-32"), model_config("ViT-B-32")
    plain.image.class_token = True
    assert differences(clip, plain) == []
    plain.text.end_token = 3
    assert differences(clip, plain) == ["model.text.end_token = 49407 (it would be 3)"]


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-B-32"])
def test_timm_s_names_are_those_that_timm_has(name):
    """Sizes are free in clipjax; open_clip builds what timm has a name for."""
    image = model_config(name).image
    found, wrong = timm_models.find(image)
    assert found in timm_names.NAMES
    assert timm_models.arguments(found)["img_size"] == image.size
    image.size = 5 * image.patch
    found, wrong = timm_models.find(image)
    assert found in timm_names.NAMES
    assert any(part.startswith("model.image.size") for part in wrong)


def test_every_name_of_timm_is_read():
    assert len(timm_names.NAMES) == len(set(timm_names.NAMES))
    for name in timm_names.NAMES:
        timm_models.image_tower(timm_models.arguments(name))


def test_a_larger_resize_than_crop_is_named():
    config = _clip(width=64)
    PRESETS["clip"]._replace(crop_fraction=0.5).apply(config)
    with pytest.raises(UserError, match=r"preprocess\.crop_fraction = 0\.5 \(it would be 1\.0\)"):
        formats.get("openai").export(config, None, {})


def test_the_other_activation_is_named():
    """The error that costs users most: OpenAI's own activation, taken for granted."""
    config = _clip(width=64)
    PRESETS["clip"].apply(config)
    with pytest.raises(UserError) as error:
        formats.get("openai").export(config, None, {})
    assert "model.image.activation = 'gelu' (it would be 'quick_gelu')" in str(error.value)


def test_a_tokenizer_that_would_do_otherwise_is_noted():
    """Nothing is wrong with the model, so it is written, and the user is told."""
    assert repairs(ClipBPE(8))
    notes = formats.get("hugging_face").export(_clip(), ClipBPE(8), {}).notes
    assert any("transformers' CLIP tokenizer does not" in note for note in notes)


def _clip(width=16):
    config = base_config()
    heads = max(1, width // 64)
    image = image_section(size=16, patch=8, width=width, depth=1, heads=heads)
    text = text_section(length=8, width=width, depth=1, heads=heads)
    config.model = model_section(image, text, embed_dim=8)
    return config
