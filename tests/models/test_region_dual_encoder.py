"""Models with regions: what each loss reaches, RoI-Align by hand, and that boxes are learnt."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax import rules
from clipjax.errors import UserError
from clipjax.losses import grounding, region_contrastive, softmax_contrastive
from clipjax.losses.regions.contrastive import region_softmax
from clipjax.losses.regions.grounding import region_grounding
from clipjax.models import (
    example_batch,
    image_section,
    make_model,
    model_section,
    region_section,
    text_section,
)
from clipjax.models.regions.roi_align import POINTS, roi_align

B, M = 4, 2


def section(head="prompter", **settings):
    """A tiny region model's section; settings are those of the region head."""
    image = image_section(size=16, patch=4, width=16, depth=1, heads=2, pool="map")
    text = text_section(length=6, vocab_size=32, width=16, depth=1, heads=2, end_token=31)
    return model_section(
        image,
        text,
        kind="region_dual_encoder",
        regions=region_section(head, **settings),
        embed_dim=8,
        dtype="float32",
    )


@functools.cache
def built(head="prompter", **settings):
    """(module, parameters)."""
    config = section(head, **settings)
    module = make_model(config)
    example = {k: jnp.zeros(v.shape, v.dtype) for k, v in example_batch(config).items()}
    params = jax.jit(lambda key: nn.unbox(module.init(key, example))["params"])(jax.random.key(0))
    return module, params


def batch(seed=0, size=B, length=6):
    """Images and texts at random, two regions each; texts end with the end token."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (size, M, 2))
    text = rng.integers(0, 31, (size, 6))
    region_text = rng.integers(0, 31, (size, M, length))
    text[:, 4], region_text[..., 2] = 31, 31
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 16, 16, 3)), jnp.uint8),
        "text": jnp.asarray(text, jnp.int32),
        "boxes": jnp.asarray(
            np.concatenate([low, low + rng.uniform(0.2, 0.5, low.shape)], -1), jnp.float32
        ),
        "region_text": jnp.asarray(region_text, jnp.int32),
        "region_mask": jnp.asarray(rng.random((size, M)) < 0.8).at[0].set(True),
    }


LOSSES = {
    "clip": lambda o, b: softmax_contrastive(
        o["image_embedding"], o["text_embedding"], o["logit_scale"]
    )[0],
    "regions": lambda o, b: region_softmax(o, b)[0],
    "grounding": lambda o, b: region_grounding(o, b)[0],
}


@functools.cache
def gradients(loss, masked=False):
    """Largest gradient of each part of the model under one loss."""
    module, params = built()
    given = batch()
    if masked:
        given["region_mask"] = jnp.zeros_like(given["region_mask"])

    def objective(params):
        return LOSSES[loss](module.apply({"params": params}, given), given)

    value, found = jax.jit(jax.value_and_grad(objective))(params)
    return float(value), {k: float(jnp.abs(v).max()) for k, v in rules.paths(found).items()}


def reached(found, prefix):
    """Whether any parameter under a prefix has a gradient."""
    values = [v for k, v in found.items() if k.startswith(prefix)]
    assert values, prefix
    return any(v > 0 for v in values)


PARTS = {
    "vit": "image/transformer",
    "pooler": "image/pool",
    "image_projection": "image_head",
    "text": "text/transformer",
    "text_projection": "text_head",
    "prompter": "regions/layer",
    "region_projection": "regions/projection",
    "corners": "regions/corner_embedding",
    "text_prompt": "regions/text_prompt",
    "box_head": "regions/box_",
}


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ("clip", {"vit", "pooler", "image_projection", "text", "text_projection"}),
        (
            "regions",
            {"vit", "text", "text_projection", "prompter", "region_projection", "corners"},
        ),
        (
            "grounding",
            {
                "vit",
                "text",
                "text_projection",
                "prompter",
                "region_projection",
                "text_prompt",
                "box_head",
            },
        ),
    ],
)
def test_what_each_loss_reaches(loss, parts):
    _, found = gradients(loss)
    assert {part for part, prefix in PARTS.items() if reached(found, prefix)} == parts


@pytest.mark.parametrize("loss", ["regions", "grounding"])
def test_without_regions_there_is_no_gradient(loss):
    value, found = gradients(loss, masked=True)
    assert value == 0
    assert set(found.values()) == {0.0}


def test_the_total_is_the_image_loss_times_nothing_else_where_no_image_has_regions():
    module, params = built()
    given = batch() | {"region_mask": jnp.zeros((B, M), bool)}
    outputs = jax.jit(module.apply)({"params": params}, given)
    total = sum(loss(outputs, given) for loss in LOSSES.values())
    assert total == LOSSES["clip"](outputs, given)


def test_regions_that_do_not_exist_change_nothing():
    module, params = built()
    given = batch()
    mask = given["region_mask"]
    assert not mask.all()
    other = batch(seed=1)
    changed = given | {
        k: jnp.where(mask[..., None], given[k], other[k]) for k in ("boxes", "region_text")
    }
    run = jax.jit(
        jax.value_and_grad(
            lambda p, b: sum(LOSSES[k](module.apply({"params": p}, b), b) for k in LOSSES)
        )
    )
    one, two = run(params, given), run(params, changed)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    for x, y in zip(jax.tree.leaves(one[1]), jax.tree.leaves(two[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)


def test_shorter_region_texts_mean_the_same():
    module, params = built()
    given, apply = batch(), jax.jit(module.apply)
    whole = apply({"params": params}, given)
    short = apply({"params": params}, given | {"region_text": given["region_text"][..., :3]})
    for name in ("region_text_embedding", "grounded_boxes"):
        np.testing.assert_allclose(whole[name], short[name], rtol=1e-5, atol=1e-6)


def test_a_tower_that_sees_padding_refuses_shorter_region_texts():
    config = section()
    config.text.attention = "full"
    module = make_model(config)
    given = batch(length=3)
    with pytest.raises(
        UserError, match=r"of 3 tokens are shorter than the text tower's 6.*text_length to None"
    ):
        jax.eval_shape(module.init, jax.random.key(0), given)


def test_a_tower_whose_tokens_are_queries_is_refused():
    config = section()
    config.image.update(pool="attention", class_token=True)
    with pytest.raises(UserError, match=r"model.image.pool = 'attention' gives queries.*use 'map'"):
        jax.eval_shape(make_model(config).init, jax.random.key(0), batch())


@pytest.mark.parametrize("head", ["prompter", "roi_align"])
def test_outputs(head):
    module, params = built(head)
    given = batch()
    outputs = jax.jit(module.apply)({"params": params}, given)
    assert ("grounded_boxes" in outputs) == (head == "prompter")
    lengths = np.linalg.norm(outputs["region_embedding"], axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    alone = jax.jit(module.apply)({"params": params}, {k: given[k] for k in ("image", "boxes")})
    np.testing.assert_allclose(alone["region_embedding"], outputs["region_embedding"], atol=1e-6)
    assert "region_text_embedding" not in alone
    texts = jax.jit(module.apply)({"params": params}, {"region_text": given["region_text"]})
    assert "grounded_boxes" not in texts


def test_roi_align_equals_bilinear_samples_by_hand():
    rng = np.random.default_rng(0)
    grid, width = 5, 3
    tokens = rng.normal(size=(2, grid * grid, width))
    low = rng.uniform(-0.05, 0.6, (2, 4, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.01, 0.5, low.shape)], -1)
    arrays = jnp.asarray(tokens, jnp.float32), jnp.asarray(boxes, jnp.float32)
    got = jax.jit(functools.partial(roi_align, grid=grid))(*arrays)

    def sample(plane, x, y):
        """Bilinear, with the edge's value beyond the centres of the outermost patches."""
        x, y = (min(max(v * grid - 0.5, 0.0), grid - 1.0) for v in (x, y))
        i, j = min(int(y), grid - 2), min(int(x), grid - 2)
        a, b = y - i, x - j
        return (1 - a) * ((1 - b) * plane[i, j] + b * plane[i, j + 1]) + a * (
            (1 - b) * plane[i + 1, j] + b * plane[i + 1, j + 1]
        )

    for n in range(2):
        plane = tokens[n].reshape(grid, grid, width)
        for m in range(4):
            x1, y1, x2, y2 = boxes[n, m]
            at = (np.arange(POINTS) + 0.5) / POINTS
            points = [(x1 + (x2 - x1) * u, y1 + (y2 - y1) * v) for u in at for v in at]
            want = np.mean([sample(plane, *p) for p in points], 0)
            np.testing.assert_allclose(got[n, m], want, rtol=1e-4, atol=1e-5)


def test_whole_box_is_the_average():
    module, params = built()
    given = batch() | {"boxes": jnp.tile(jnp.array([0.0, 0, 1, 1]), (B, M, 1))}
    got = jax.jit(functools.partial(module.apply, method="pool_regions"))({"params": params}, given)
    assert got.shape == (B, M, 8)
    ones = jnp.arange(16.0).reshape(1, 16, 1)
    np.testing.assert_allclose(roi_align(ones, jnp.array([[[0.0, 0, 1, 1]]]), 4), 7.5, rtol=1e-5)


@pytest.mark.parametrize("head", ["roi_align", "prompter"])
def test_tokens_that_are_no_square_grid_are_refused(head):
    """Also where their number is a square, by chance."""
    settings = {"token_positions": True} if head == "prompter" else {}
    given = {k: batch()[k] for k in ("image", "boxes")} | {"sample_seed": jnp.arange(B)}

    def outputs(given, method="__call__", train=False, **image):
        config = section(head, **settings)
        config.image.update(image)
        module = make_model(config)
        arguments = {} if method == "pool_regions" else {"train": train}
        return jax.eval_shape(
            lambda given: module.init_with_output(
                jax.random.key(0), given, method=method, **arguments
            )[0],
            given,
        )

    assert outputs(given)["region_embedding"].shape == (B, M, 8)
    # A quarter of 16 patches is left, and 8 x 32 pixels have 16.
    assert "region_embedding" in outputs(given, patch_dropout=0.75)
    wide = given | {"image": jnp.zeros((B, 8, 32, 3), jnp.uint8)}
    for change in (
        {"given": given, "train": True, "patch_dropout": 0.75},
        {"given": wide, "positions": "naflex"},
    ):
        with pytest.raises(UserError, match="needs the tokens of a square grid of patches"):
            outputs(**change)
    with pytest.raises(UserError, match=r"16 tokens of width 16 .* no square grid; .*how='crop'"):
        outputs(wide, "pool_regions", positions="naflex")


def test_a_resnets_tokens_are_not_pooled():
    tower = image_section("resnet", size=32, width=8, layers=(1, 1, 1, 1), heads=4, output_dim=8)
    text = text_section(length=6, vocab_size=32, width=16, depth=1, heads=2, end_token=31)
    config = model_section(tower, text, embed_dim=8, dtype="float32", image_projection="none")
    given = {"image": jnp.zeros((2, 32, 32, 3), jnp.uint8), "boxes": jnp.zeros((2, 1, 4))}
    with pytest.raises(UserError, match="are not what its projection takes"):
        jax.eval_shape(
            lambda: make_model(config).init(jax.random.key(0), given, method="pool_regions")
        )


COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 255, 255]]
)
QUADRANTS = np.array(
    [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]], np.float32
)


def quadrants(rng, size):
    """Images of four coloured quadrants; a region's text is its colour."""
    colour = rng.integers(0, len(COLOURS), (size, 4))
    image = COLOURS[colour].reshape(size, 2, 2, 3).repeat(8, 1).repeat(8, 2)
    noise = rng.normal(0, 20, image.shape)
    text = np.stack([colour, np.full_like(colour, 31)], -1)
    return {
        "image": np.clip(image + noise, 0, 255).astype(np.uint8),
        "boxes": np.broadcast_to(QUADRANTS, (size, 4, 4)),
        "region_text": text.astype(np.int32),
        "region_mask": np.ones((size, 4), bool),
    }, colour


def test_box_prompts_are_learnt():
    """After a short training the colour in a box is known, and with boxes exchanged it is as good as guessed."""
    module, params = built(token_positions=True)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, given):
        def objective(params):
            o = module.apply({"params": params}, given)
            z, t = o["region_embedding"], o["region_text_embedding"]
            loss = region_contrastive(z, t, given["region_mask"], 10.0)[0]
            return loss + grounding(o["grounded_boxes"], given["boxes"], given["region_mask"])[0]

        value, slope = jax.value_and_grad(objective)(params)
        update, state = optimizer.update(slope, state)
        return optax.apply_updates(params, update), state, value

    rng, state = np.random.default_rng(0), optimizer.init(params)
    for _ in range(300):
        params, state, _ = step(params, state, quadrants(rng, 32)[0])
    given, colour = quadrants(rng, 100)
    names = np.stack([np.arange(len(COLOURS)), np.full(len(COLOURS), 31)], -1)[None]
    apply = jax.jit(module.apply)
    texts = apply({"params": params}, {"region_text": jnp.asarray(names, jnp.int32)})

    def accuracy(given):
        z = apply({"params": params}, given)["region_embedding"]
        return np.mean(np.argmax(z @ texts["region_text_embedding"][0].T, -1) == colour)

    chance = 1 / len(COLOURS)
    assert accuracy(given) > 0.9
    turned = given | {"boxes": given["boxes"][:, [1, 2, 3, 0]]}
    assert abs(accuracy(turned) - chance) < 0.1
