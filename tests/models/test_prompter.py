"""CLOC's Prompter: equal to a plain transformer layer over [prompt; image tokens], at a third of its products."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.cost.flops import count
from clipjax.errors import UserError
from clipjax.models.options import BlockOptions
from clipjax.models.regions.boxes import encode_corners, encode_grid
from clipjax.models.regions.prompter import Prompter
from clipjax.models.transformer import Block

B, N, W, D, M = 2, 9, 16, 8, 3


@pytest.fixture(scope="module")
def given():
    """Image tokens, boxes and texts."""
    keys = jax.random.split(jax.random.key(0), 4)
    low = jax.random.uniform(keys[1], (B, M, 2), maxval=0.5)
    size = jax.random.uniform(keys[2], (B, M, 2), minval=0.1, maxval=0.5)
    return {
        "tokens": jax.random.normal(keys[0], (B, N, W)),
        "boxes": jnp.concatenate([low, low + size], -1),
        "texts": jax.random.normal(keys[3], (B, M, D)),
    }


@pytest.fixture(scope="module")
def params(given):
    """Parameters of a prompter, none of them left at zero or one."""
    drawn = jax.jit(lambda key: _init(key, given))(jax.random.key(1))
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise, strict=True)])


def _init(key, given):
    return nn.unbox(
        Prompter().init(
            key, given["tokens"], D, boxes_BxMx4=given["boxes"], text_BxMxD=given["texts"]
        )
    )["params"]


def prompt(params, given, *, real=None, grid=None, boxes=True, texts=True, **settings):
    """What the prompter makes of the images."""
    asked = {"boxes_BxMx4": given["boxes"] if boxes else None}
    asked |= {"text_BxMxD": given["texts"] if texts else None, "real_BxN": real}
    return _prompter(tuple(settings.items()), grid)(params, given["tokens"], asked)


@functools.cache
def _prompter(settings, grid):
    module = Prompter(**dict(settings))
    return jax.jit(
        lambda params, tokens, asked: module.apply(
            {"params": params}, tokens, D, grid=grid, **asked
        )
    )


@functools.partial(jax.jit, static_argnames="dtype")
def plain(params, tokens_NxW, prompt_TxW, real_N, dtype="float32"):
    """The same layer as written in the paper: a block over the prompt and the image, averaged, normed, projected."""
    layer = params["layer"]
    qkv = layer["qkv"]
    attention = {
        "qkv_kernel": qkv["kernel"].reshape(W, 3, 1, W),
        "qkv_bias": qkv["bias"].reshape(3, 1, W),
        "out": layer["out"],
    }
    block = {
        "norm_1": layer["norm_1"],
        "norm_2": layer["hidden"]["norm_2"],
        "attention": attention,
        "mlp": {"fc_in": layer["hidden"]["fc_in"], "fc_out": layer["fc_out"]},
    }
    rows = jnp.concatenate([prompt_TxW, tokens_NxW])[None].astype(dtype)
    real = jnp.concatenate([jnp.ones(len(prompt_TxW), bool), real_N])
    options = BlockOptions(heads=1, mlp_dim=4 * W, dtype=dtype)
    y, _ = Block(options, 1).apply({"params": block}, rows, real[None, None, None], None)
    mean = jnp.mean(y[0], axis=0, where=real[:, None])
    normed = (mean - mean.mean()) / jnp.sqrt(mean.var() + 1e-5)
    normed = normed * params["norm_post"]["scale"] + params["norm_post"]["bias"]
    return normed @ params["projection"]["out"]["kernel"]


ALL = jnp.ones(N, bool)


def box_prompts(params, given):
    return encode_corners(given["boxes"], W) + params["corner_embedding"]


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("unroll", [0, 1])
def test_equals_the_plain_layer(params, given, remat, unroll):
    got, _ = prompt(params, given, texts=False, remat=remat, unroll=unroll)
    prompts = box_prompts(params, given)
    want = [
        [plain(params, given["tokens"][b], prompts[b, m], ALL) for m in range(M)] for b in range(B)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_the_plain_layer(params, given):
    weights = jax.random.normal(jax.random.key(5), (B, M, D))

    def fast(params, tokens):
        return jnp.sum(weights * prompt(params, given | {"tokens": tokens}, texts=False)[0])

    def slow(params, tokens):
        over_prompts = jax.vmap(plain, (None, None, 0, None))
        over_images = jax.vmap(over_prompts, (None, 0, 0, None))
        return jnp.sum(weights * over_images(params, tokens, box_prompts(params, given), ALL))

    got, want = (jax.jit(jax.grad(f, (0, 1)))(params, given["tokens"]) for f in (fast, slow))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5, err_msg=str(path))


def test_padding_is_not_seen(params, given):
    real = np.arange(N) < np.array([[5], [N]])
    got, _ = prompt(params, given, real=jnp.asarray(real), texts=False)
    prompts = box_prompts(params, given)
    for b in range(B):
        for m in range(M):
            want = plain(params, given["tokens"][b], prompts[b, m], real[b])
            np.testing.assert_allclose(got[b, m], want, rtol=1e-5, atol=1e-5)
    junk = given["tokens"].at[0, 5:].set(1e3)
    again, _ = prompt(params, given | {"tokens": junk}, real=jnp.asarray(real), texts=False)
    np.testing.assert_array_equal(got, again)


def test_depends_on_the_box_and_not_on_the_order_of_tokens(params, given):
    got, boxes = prompt(params, given)
    other, _ = prompt(params, given | {"boxes": given["boxes"].at[0, 0, 0].add(0.05)})
    changed = np.abs(np.asarray(got - other)).max(-1)
    assert changed[0, 0] > 1e-4
    assert changed.ravel()[1:].max() == 0
    turned = given | {"tokens": given["tokens"][:, np.random.default_rng(0).permutation(N)]}
    for x, y in zip(prompt(params, turned), (got, boxes), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_prompts_together_equal_prompts_alone(params, given):
    together = prompt(params, given)
    for m in range(M):
        one = {k: v if k == "tokens" else v[:, m : m + 1] for k, v in given.items()}
        for x, y in zip(prompt(params, one), together, strict=True):
            np.testing.assert_allclose(x[:, 0], y[:, m], rtol=1e-5, atol=1e-6)
    assert prompt(params, given, texts=False)[1] is None
    assert prompt(params, given, boxes=False)[0] is None


def test_a_prompt_costs_one_product_of_the_layer(params, given):
    """Beside what an image's prompts share: N x W x F, where the whole layer is N (4 W W + 2 N W + 2 W F)."""

    def flops(prompts, tokens=256):
        boxes = jnp.zeros((1, prompts, 4))
        shared = jnp.zeros((1, tokens, W))
        return count(
            lambda p: Prompter().apply({"params": p}, shared, D, boxes_BxMx4=boxes)[0], params
        )

    each = (flops(5) - flops(1)) / 4
    product = 2 * 256 * W * 4 * W
    assert product < each < 1.25 * product
    plain_layer = 2 * 256 * (12 * W * W + 2 * 256 * W)
    assert each < plain_layer / 3


def test_bfloat16_stays_near(params, given):
    exact, rounded = prompt(params, given), prompt(params, given, dtype="bfloat16")
    assert (rounded[0].dtype, rounded[1].dtype) == (jnp.bfloat16, jnp.float32)
    for x, y in zip(rounded, exact, strict=True):
        assert np.linalg.norm(x - y) / np.linalg.norm(y) < 0.03


def test_gradients_in_bfloat16_are_as_near_as_the_plain_layers(params, given):
    """The sums over prompts and the products of attention have backward passes of their own."""
    weights = jax.random.normal(jax.random.key(5), (B, M, D))
    real = jnp.arange(N)[None] < jnp.array([[N], [N - 3]])

    def fast(params, tokens, dtype):
        new = given | {"tokens": tokens}
        found = prompt(params, new, texts=False, real=real, dtype=dtype)[0]
        return jnp.sum(weights * found)

    def slow(params, tokens, dtype):
        layer = functools.partial(plain, dtype=dtype)
        over_prompts = jax.vmap(layer, (None, None, 0, None))
        over_images = jax.vmap(over_prompts, (None, 0, 0, 0))
        return jnp.sum(weights * over_images(params, tokens, box_prompts(params, given), real))

    def slopes(objective, dtype):
        slope = jax.jit(jax.grad(objective, (0, 1)), static_argnums=2)
        return jax.tree.leaves(slope(params, given["tokens"], dtype))

    exact = slopes(slow, "float32")
    far = [
        [
            np.linalg.norm(x - y) / np.linalg.norm(y)
            for x, y in zip(found, exact, strict=True)
            if y.any()
        ]
        for found in (slopes(fast, "bfloat16"), slopes(slow, "bfloat16"))
    ]
    assert 0.001 < np.mean(far[0]) < 1.25 * np.mean(far[1])
    assert max(far[0]) < 1.5 * max(far[1])


def test_token_positions_are_those_of_the_patches(params, given):
    """The code is added to the tokens: order matters then, unless the tokens bring it themselves."""
    got, _ = prompt(params, given, texts=False, grid=3, token_positions=True)
    coded = given | {"tokens": given["tokens"] + encode_grid(3, W)}
    want, _ = prompt(params, coded, texts=False)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        encode_grid(3, W).reshape(3, 3, W)[1, 2],
        encode_corners(jnp.array([[[5 / 6, 0.5, 1, 1]]]), W)[0, 0, 0],
        atol=1e-4,
    )
    with pytest.raises(UserError, match="token_positions needs the tokens of a square grid"):
        prompt(params, given, token_positions=True)


def test_corners_are_coded_as_documented():
    boxes = np.random.default_rng(0).uniform(size=(2, 3, 4)).astype(np.float32)
    code = np.asarray(encode_corners(jnp.asarray(boxes), 16))
    assert code.shape == (2, 3, 2, 16)
    lengths = [
        2 * (1 / 32) ** (i / 3) for i in range(4)
    ]  # from two frames to a sixteenth, geometric
    for corner in (0, 1):
        x, y = boxes[..., 2 * corner], boxes[..., 2 * corner + 1]
        want = [f(2 * np.pi * c / w) for c in (x, y) for f in (np.sin, np.cos) for w in lengths]
        np.testing.assert_allclose(code[:, :, corner], np.stack(want, -1), atol=1e-4)


def test_refusals(given):
    with pytest.raises(UserError, match="a width that 4 divides, not 6"):
        encode_corners(given["boxes"], 6)
    with pytest.raises(UserError, match=r"\[B, M, 4\], not \[2, 3\]"):
        encode_corners(jnp.zeros((2, 3)), 8)
    with pytest.raises(UserError, match="did you mean 'full'"):
        jax.eval_shape(
            lambda: Prompter(remat="ful").init(
                jax.random.key(0), given["tokens"], D, boxes_BxMx4=given["boxes"]
            )
        )
