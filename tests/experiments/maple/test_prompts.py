"""MaPLe's prompts in a small CLIP: the numbers are those of the note's list "Testable small"."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax import rules
from clipjax.data.tokenizers import make_tokenizer
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.losses import class_cross_entropy
from clipjax.models import image_section, make_model, model_section, text_section
from clipjax.models.layer_inputs import Taps
from clipjax.models.transformer import Block
from clipjax.stages import run
from experiments.maple.stages import add_prompts

FOLDER = Path(__file__).parents[3] / "experiments" / "maple"
L, N, DEPTH, WT, WV = 10, 2, 3, 16, 24
NAMES = ("cat", "green apple", "kite")
BPE = {"kind": "clip_bpe"}
OTHER = np.random.default_rng(1).normal(size=(DEPTH, N, WT)).astype(np.float32)
IMAGE = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def tokens(texts):
    return make_tokenizer(BPE, L)(texts)


@functools.cache
def clip():
    """(parameters, config) of a fresh CLIP."""
    image = image_section(size=16, patch=8, width=WV, depth=3, heads=2)
    text = text_section(length=L, width=WT, depth=3, heads=2)
    config = base_config()
    config.model = model_section(image, text, embed_dim=8, init_scale=20.0)
    module = make_model(config.model)
    batch = {"image": IMAGE, "text": tokens(["cat"] * 3)}
    params = jax.jit(module.init)(jax.random.key(0), batch)["params"]
    params = jax.tree.map(np.asarray, jax.tree.map(lambda x: x.unbox(), params, is_leaf=_is_boxed))
    return params, config


def _is_boxed(x):
    return hasattr(x, "unbox")


@functools.cache
def prompted(arm="coupled", depth=DEPTH):
    """(module, parameters) of an arm, as the stage makes it."""
    params, config = clip()
    config = type(config)(config.to_dict(), type_safe=False)
    settings = dict(arm=arm, count=N, depth=depth)
    flat, config = run(add_prompts, "add_prompts", dict(params), config, settings)
    config.model.classes = NAMES
    return make_model(config.model), rules.tree(flat)


@functools.partial(jax.jit, static_argnums=0)
def outputs(module, params, batch):
    return module.apply({"params": params}, batch)


def of(arm="coupled", depth=DEPTH, change=None, batch=None):
    """All outputs of an arm for three images and their labels, after a change of its prompts."""
    module, params = prompted(arm, depth)
    prompts = {name: np.array(x) for name, x in params["prompts"].items()}
    if change is not None:
        change(prompts)
    batch = batch or {"image": IMAGE, "labels": np.arange(3, dtype=np.int32)[:, None]}
    return outputs(module, params | {"prompts": prompts}, batch)


def test_1_shallow_prompts_begin_as_the_words():
    params, config = clip()
    sentences = tokens([f"a photo of a {name}." for name in NAMES])
    want = outputs(make_model(config.model), params, {"text": sentences})["text_embedding"]
    np.testing.assert_array_equal(of(depth=1)["class_centres"], want)


def test_1_deep_prompts_do_not():
    params, config = clip()
    sentences = tokens([f"a photo of a {name}." for name in NAMES])
    want = outputs(make_model(config.model), params, {"text": sentences})["text_embedding"]
    assert np.abs(of()["class_centres"] - want).max() > 1e-3


def test_2_parameters():
    _, params = prompted()
    count = sum(x.size for x in params["prompts"].values())
    assert count == DEPTH * (N * WT) + DEPTH * (WT * WV + WV)


def test_2_coupling_functions_begin_alike_but_the_first():
    _, params = prompted()
    kernel, bias = (params["prompts"][f"coupling_{name}"] for name in ("kernel", "bias"))
    np.testing.assert_array_equal(bias[1], bias[2])
    assert np.abs(bias[0] - bias[1]).max() > 0.1
    assert np.abs(bias).max() <= WT**-0.5
    np.testing.assert_array_equal(kernel[1], kernel[2])
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    assert np.abs(kernel).max() <= WT**-0.5
    assert np.abs(kernel).std() == pytest.approx(WT**-0.5 / 12**0.5, rel=0.2)


@pytest.mark.parametrize("stopped", ["class_centres", "image_embedding"])
def test_3_prompts_learn_from_either_side(stopped):
    module, params = prompted()
    batch = {"image": IMAGE, "labels": np.arange(3, dtype=np.int32)[:, None]}

    @jax.jit
    def gradient(prompts):
        def loss(prompts):
            found = outputs(module, params | {"prompts": prompts}, batch)
            found = found | {stopped: jax.lax.stop_gradient(found[stopped])}
            arrays = (found["image_embedding"], found["class_centres"], jnp.arange(3))
            return class_cross_entropy(*arrays, found["logit_scale"])[0]

        return jax.grad(loss)(prompts)

    found = gradient(params["prompts"])
    assert np.abs(found["text"]).max(axis=(1, 2)).min() > 1e-5  # every P_j
    coupled = np.abs(found["coupling_kernel"]).max(axis=(1, 2))
    assert (coupled > 1e-5).all() if stopped == "class_centres" else (coupled == 0).all()


def test_4_zero_coupling_gives_the_same_vision_prompts_whatever_the_language():
    def zero(prompts):
        for name in ("coupling_kernel", "coupling_bias"):
            prompts[name][:] = 0

    def other(prompts):
        zero(prompts)
        prompts["text"] += OTHER

    a, b = of(change=zero), of(change=other)
    np.testing.assert_array_equal(a["image_embedding"], b["image_embedding"])
    assert np.abs(a["class_centres"] - b["class_centres"]).max() > 1e-3
    plain, moved = of(), of(change=lambda prompts: prompts["text"].__iadd__(OTHER))
    assert np.abs(plain["image_embedding"] - moved["image_embedding"]).max() > 1e-3


@pytest.mark.parametrize("output", ["class_centres", "image_embedding"])
@pytest.mark.parametrize(("depth", "changes"), [(3, False), (2, True)])
def test_5_what_a_block_leaves_in_the_slot_is_discarded(output, depth, changes):
    """Noise on the slot behind every block: with prompts in all three layers nobody sees it."""
    module, params = prompted(depth=depth)
    slot = slice(1, 1 + N) if output == "class_centres" else slice(-N, None)

    @jax.jit
    def embedding(params, noise):
        def spoil(block, args, kwargs, context):
            found = block(*args, **kwargs)
            if not isinstance(context.module, Block) or context.method_name != "__call__":
                return found
            (x, *rest), nothing = found
            return (x.at[:, slot].add(noise * jnp.arange(x.shape[-1])), *rest), nothing

        with nn.intercept_methods(spoil):
            batch = {"image": IMAGE, "labels": np.zeros((3, 1), np.int32)}
            return module.apply({"params": params}, batch)[output]

    plain, spoilt = (embedding(params, jnp.float32(x)) for x in (0.0, 1.0))
    assert (np.abs(plain - spoilt).max() > 1e-3) == changes
    if not changes:
        np.testing.assert_array_equal(plain, spoilt)


def test_6_lengths():
    module, params = prompted()

    @jax.jit
    def layers(params):
        def towers(module):
            _, image = module.prompts()
            options = module._in_image(image) | {"taps": Taps(hidden=(0, 1, 2))}
            return module.image(jnp.asarray(IMAGE, jnp.float32), **options)[2]["hidden"]

        return module.apply({"params": params}, method=towers)

    assert layers(params).shape == (3, 3, 1 + 4 + N, WV)
    assert of(batch={"text": tokens(["a photo of a cat."])})["text_tokens"].shape == (1, L, WT)


def test_7_other_classes_change_texts_alone():
    module, params = prompted()
    novel = ("osprey", "anvil")
    other = module.clone(classes=novel)
    batch = {"image": IMAGE, "labels": np.zeros((3, 1), np.int32)}
    found, base = outputs(other, params, batch), outputs(module, params, batch)
    assert found["class_centres"].shape == (2, 8)
    np.testing.assert_array_equal(found["image_embedding"], base["image_embedding"])
    texts = tokens([f"a photo of a {name}." for name in novel])
    want = outputs(module, params, {"text": texts})["text_embedding"]
    np.testing.assert_array_equal(found["class_centres"], want)


def test_8_the_loss_falls_below_zero_shot():
    """Two classes of images, one colour each; prompts by plain gradient descent."""
    module, params = prompted(depth=1)
    params_0, config = clip()
    module = module.clone(classes=("cat", "kite"))
    images = np.stack([np.full((16, 16, 3), 60 * (i % 2) + i, np.uint8) for i in range(8)])
    labels = jnp.arange(8) % 2
    batch = {"image": images, "labels": labels[:, None]}

    def loss(prompts):
        found = outputs(module, params | {"prompts": prompts}, batch)
        arrays = (found["image_embedding"], found["class_centres"], labels)
        return class_cross_entropy(*arrays, found["logit_scale"])[0]

    step = jax.jit(jax.value_and_grad(loss))
    image = outputs(make_model(config.model), params_0, {"image": images})["image_embedding"]
    texts = {"text": tokens(["a photo of a cat.", "a photo of a kite."])}
    classes = outputs(make_model(config.model), params_0, texts)["text_embedding"]
    zero_shot = class_cross_entropy(image, classes, labels, 20.0)[0]
    prompts = params["prompts"]
    for _ in range(10):
        _, gradient = step(prompts)
        prompts = jax.tree.map(lambda x, g: x - 0.02 * g, prompts, gradient)
    assert step(prompts)[0] < 0.95 * zero_shot


@pytest.mark.parametrize(
    ("arm", "names"),
    [
        ("text", {"text"}),
        ("image", {"image"}),
        ("independent", {"text", "image"}),
        ("coupled", {"text", "coupling_kernel", "coupling_bias"}),
    ],
)
def test_arms(arm, names):
    assert set(prompted(arm)[1]["prompts"]) == names
    found, (params, config) = of(arm), clip()
    plain = outputs(make_model(config.model), params, {"image": IMAGE})["image_embedding"]
    assert np.array_equal(found["image_embedding"], plain) == (arm == "text")


def test_the_first_prompt_is_the_words_and_the_others_are_drawn():
    _, params = prompted()
    ids = tokens(["a photo"])[0, 1 : 1 + N]
    np.testing.assert_array_equal(
        params["prompts"]["text"][0], params["text"]["token_embedding"][ids]
    )
    assert np.std(params["prompts"]["text"][1:]) == pytest.approx(0.02, rel=0.2)


def test_words_too_few_for_the_prompts_are_refused():
    params, config = clip()
    config = type(config)(config.to_dict(), type_safe=False)
    with pytest.raises(UserError, match="needs at least 2 tokens to begin with, but 'a' has fewer"):
        add_prompts(dict(params), config, depth=1, words="a")


@pytest.mark.parametrize("tower", ["text", "image"])
def test_each_prompt_enters_its_own_layer(tower):
    """P_2 is not seen before layer 2, P_1 not before layer 1; P_0 is seen from layer 0 on."""
    module, params = prompted("independent")

    @jax.jit
    def hidden(prompts):
        def run(module):
            text, image = module.prompts()
            taps = {"taps": Taps(hidden=(0, 1, 2))}
            if tower == "image":
                pixels = jnp.asarray(IMAGE, jnp.float32) / 255
                return module.image(pixels, **module._in_image(image), **taps)[2]["hidden"]
            ids = tokens(["a photo of a cat."])
            return module._texts({"text": ids}, text, **taps)["text_hidden"]

        return module.apply({"params": params | {"prompts": prompts}}, method=run)

    plain = np.asarray(hidden(params["prompts"]))
    for layer in range(DEPTH):
        prompts = {name: np.array(x) for name, x in params["prompts"].items()}
        prompts[tower][layer] += OTHER[layer].mean() + np.arange(prompts[tower].shape[-1]) % 3
        moved = np.abs(hidden(prompts) - plain).max(axis=(0, 2, 3)) > 1e-4
        # What enters layer `layer` shows in its output and in all later ones, but for its own slot being replaced.
        assert not moved[:layer].any()
        assert moved[layer]


def test_vision_prompts_stand_at_the_end_before_the_first_norm():
    """A shift and a scale of Pv_0 vanish in that norm, and the class token and patches before layer 0 do not move."""
    module, params = prompted("image", depth=1)

    @jax.jit
    def entry(tokens_nxW):
        def run(module):
            pixels = jnp.asarray(IMAGE, jnp.float32) / 255
            how = dict(extra_tokens=tokens_nxW, taps=Taps(value=(0,)))
            return module.image(pixels, **how)[2]["value"]

        return module.apply({"params": params}, method=run)[:, 0]

    image = params["prompts"]["image"][0]
    plain, other = entry(image), entry(3.0 * image + 1.0)
    np.testing.assert_allclose(plain, other, atol=1e-3)
    changed = np.abs(entry(np.roll(image, 1, axis=-1)) - plain).max(axis=(0, 2, 3))
    np.testing.assert_array_equal(changed > 1e-3, [False] * 5 + [True] * N)


def test_a_text_that_is_all_prompt_is_no_number():
    found = of(batch={"text": tokens(["cat", "a cat", "a photo of a cat."])})["text_embedding"]
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), [True, False, False])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_depth": 4}, "must be from 1 to 3, the layers of the shorter tower"),
        ({"arm": "couple"}, "no arm 'couple' .did you mean 'coupled'"),
        ({"classes": ()}, "set config.model.classes"),
        ({"classes": ("a cat that sat on the green mat all day",)}, "has more than 10 tokens"),
        ({"text": text_section(length=L, width=WT, depth=3, heads=2, pool="last")}, "'eot'"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    _, config = clip()
    ours = {"kind": "experiments.maple.model:PromptedDualEncoder", "classes": NAMES}
    config = model_section(**config.model.to_dict() | ours | {"prompt_depth": 3} | changes)
    batch = {"image": IMAGE, "labels": np.zeros((3, 1), np.int32)}
    with pytest.raises(UserError, match=words):
        jax.eval_shape(make_model(config).init, jax.random.key(0), batch)
