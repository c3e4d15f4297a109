"""Towers alone: the same numbers, names and checks as in a dual encoder, without the other one."""

import jax
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.fields import OUTPUTS
from clipjax.models import (
    example_batch,
    image_section,
    make_model,
    model_section,
    text_section,
)
from tests.models import transformer_oracle as oracle

IMAGE = image_section(size=8, patch=4, width=8, depth=1, heads=2, patch_dropout=0.5)
TEXT = text_section(length=5, vocab_size=11, width=8, depth=1, heads=2, end_token=10)
STATISTICS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8),
    "text": np.array([[1, 10, 0, 0, 0], [2, 3, 4, 10, 0]], np.int32),
    "text_mask": MASK,
    "sample_seed": np.array([1, 2], np.uint32),
}
SECTIONS = {
    "image": model_section(IMAGE, kind="image_encoder", embed_dim=6, **STATISTICS),
    "text": model_section(text=TEXT, kind="text_encoder", embed_dim=6, text_projection="bias"),
}


@pytest.fixture(scope="module")
def both():
    config = model_section(IMAGE, TEXT, embed_dim=6, text_projection="bias", **STATISTICS)
    model = make_model(config)
    return model, oracle.random_params(model, BATCH)


@pytest.mark.parametrize("part", SECTIONS)
@pytest.mark.parametrize("train", [False, True])
def test_a_part_of_a_dual_encoder(part, train, both):
    model, params = both
    alone = make_model(SECTIONS[part])
    names = {name for name in params if name.startswith(part)}
    assert names == set(oracle.random_params(alone, BATCH)) == {part, f"{part}_head"}
    run = lambda m, p, b: jax.jit(lambda p, b: m.apply({"params": p}, b, train=train))(p, b)  # noqa: E731
    own = {name: BATCH[name] for name in BATCH if name.startswith(part) or name == "sample_seed"}
    found = run(alone, {name: params[name] for name in names}, own)
    wanted = run(model, params, BATCH)
    names = {f"{part}_embedding", f"{part}_embedding_raw", f"{part}_tokens"}
    assert found.keys() == names <= OUTPUTS.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-6, atol=1e-6)


def test_captions_of_an_image():
    model = make_model(SECTIONS["text"])
    texts = np.stack([BATCH["text"]] * 3, axis=1)
    params = oracle.random_params(model, {"text": texts})
    outputs = model.apply({"params": params}, {"text": texts})
    assert outputs["text_embedding"].shape == (2, 3, 6)
    assert outputs["text_tokens"].shape == (2, 3, 5, 8)


@pytest.mark.parametrize(
    ("part", "own", "batch"),
    [
        ("image", {"image_projection", "mean", "std", "image"}, {"image", "sample_seed"}),
        ("text", {"text_projection", "text"}, {"text", "sample_seed"}),
    ],
)
def test_sections_hold_what_the_model_has(part, own, batch):
    section = model_section(kind=f"{part}_encoder")
    shared = {"kind", "embed_dim", "dtype", "param_dtype", "attention", "quantize"}
    assert set(section) == own | shared
    assert example_batch(SECTIONS[part], 2).keys() == batch
    with pytest.raises(UserError, match="has no setting 'init_scale'"):
        model_section(kind=f"{part}_encoder", init_scale=10.0)


def test_settings_for_both_towers_reach_the_one():
    model = make_model(model_section(IMAGE, kind="image_encoder", attention="xla"))
    assert (model.image.attention_impl, model.image.dtype) == ("xla", "float32")
    with pytest.raises(UserError, match="cannot be quantised"):
        make_model(
            model_section(
                image_section("efficientnet_lite0"), kind="image_encoder", quantize="int8"
            )
        )


def test_refusals():
    with pytest.raises(UserError, match="'image_encoder' has no text tower"):
        model_section(IMAGE, TEXT, kind="image_encoder")
    extra = SECTIONS["text"].copy_and_resolve_references()
    extra.image = IMAGE
    with pytest.raises(UserError, match="'text_encoder' has no image tower"):
        make_model(extra)
    lacking = model_section(IMAGE, TEXT)
    del lacking.text
    with pytest.raises(UserError, match=r"'dual_encoder' needs a section config\.model\.text"):
        make_model(lacking)
    with pytest.raises(UserError, match="did you mean 'image_encoder'"):
        model_section(kind="image_encodr")
