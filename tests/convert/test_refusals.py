"""What a format cannot express is refused in one sentence that names the field, before anything is read or written."""

import pytest
from parity_cases import GOLDENS, lay_out, register_timm

from clipjax.convert import formats
from clipjax.convert.command import convert
from clipjax.convert.formats.open_clip import repairs
from clipjax.convert.source import open_source
from clipjax.data.presets import PRESETS
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.models import image_section, model_section, text_section


@pytest.fixture(scope="module")
def their(tmp_path_factory):
    made = {}

    def directory(name):
        if name not in made:
            made[name] = lay_out(GOLDENS[name], tmp_path_factory.mktemp(name))
        return made[name]

    return directory


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("open_clip_eva02_base", "hugging_face", "model.image.rope = 'eva'"),
        ("open_clip_resnet", "hugging_face", "model.image.kind = 'resnet'"),
        ("open_clip_vit", "openai", "heads that are 64 wide, and model.image.width = 36"),
        ("hugging_face_clip_gelu", "long_clip", "texts of more than 20 tokens"),
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
def test_so_is_what_is_done_to_pictures(their, resize, to, said):
    source = open_source(their("openai_vit"))
    source.config.preprocess.resize = resize
    with pytest.raises(UserError) as error:
        formats.get(to).export(source.config, None, {})
    assert said in str(error.value)


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
