"""What towers are given and asked for layer by layer, against plain loops over the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.models.image import ViT
from clipjax.models.layer_inputs import DeepPrompts, Taps
from clipjax.models.options import BlockOptions
from clipjax.models.text import TextTransformer
from clipjax.models.transformer import Block, Transformer
from tests.models import transformer_oracle as oracle

OPTIONS = BlockOptions(heads=2, mlp_dim=12, causal=True)
STACK = Transformer(4, OPTIONS)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
PROMPTS = RNG.normal(size=(2, 3, 8)).astype(np.float32)
EVERY = Taps(hidden=(2, -1), attention=(0, 3), query=(1,), key=(1,), value=(1,))


@pytest.fixture(scope="module")
def params():
    return oracle.random_params(STACK, X)


def run(params, module=STACK, x=X, **options):
    apply = lambda p, x, o: module.apply({"params": p}, x, **o)  # noqa: E731
    static = {k: options.pop(k) for k in ("taps",) if k in options}
    return jax.jit(lambda p, x, o: apply(p, x, o | static))(params, x, options)


def by_hand(params, x=X, prompts=None, slot=0, first=0):
    """The blocks one after another, each called alone: what each of them puts out."""
    hidden = []
    for layer in range(4):
        if prompts is not None and first <= layer < first + len(prompts):
            count = prompts.shape[-2]
            x = jnp.asarray(x).at[:, slot : slot + count].set(prompts[layer - first])
        one = {"params": jax.tree.map(lambda a, i=layer: a[i], params["blocks"])}
        (x, _), _ = Block(OPTIONS, 4).apply(one, (x, {}), None, None, None, {})
        hidden.append(x)
    return hidden


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("unroll", [1, 0])
def test_prompts_replace_tokens_at_the_entry_of_layers(params, remat, unroll):
    module = STACK.clone(remat=remat, unroll=unroll)
    wanted = by_hand(params, prompts=PROMPTS, slot=1, first=1)
    for slot in (1, -4):
        found = run(params, module, deep_prompts=DeepPrompts(PROMPTS, slot, 1))
        np.testing.assert_allclose(found, wanted[-1], rtol=1e-5, atol=1e-5)
    each = np.stack([PROMPTS, 2 * PROMPTS], axis=1)  # another for the second sample
    found = run(params, module, deep_prompts=DeepPrompts(each, 1, 1))
    np.testing.assert_allclose(found[0], wanted[-1][0], rtol=1e-5, atol=1e-5)
    other = by_hand(params, prompts=2 * PROMPTS, slot=1, first=1)
    np.testing.assert_allclose(found[1], other[-1][1], rtol=1e-5, atol=1e-5)


def test_what_stood_in_the_places_of_prompts_does_not_matter(params):
    """Of the layer before, too; and gradients reach the prompts."""
    prompts = DeepPrompts(PROMPTS[:1], slot=1)
    changed = X.copy()
    changed[:, 1:4] = 7.0
    run_both = [run(params, x=x, deep_prompts=prompts) for x in (X, changed)]
    np.testing.assert_array_equal(*run_both)

    def total(tokens):
        out = STACK.apply({"params": params}, X, deep_prompts=DeepPrompts(tokens, 1, 2))
        return jnp.sum(out[:, 4] ** 2)

    grads = jax.jit(jax.grad(total))(PROMPTS)
    assert (np.abs(grads).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_taps(params, remat):
    out, found = run(params, STACK.clone(remat=remat), taps=EVERY)
    hidden = by_hand(params)
    np.testing.assert_allclose(out, hidden[-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["hidden"][:, 0], hidden[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["hidden"][:, 1], out)
    attention = found["attention"]
    assert attention.shape == (2, 2, 2, 5, 5)
    np.testing.assert_allclose(attention.sum(-1), 1.0, rtol=1e-5)
    assert not np.triu(attention, 1).any()
    assert {found[n].shape for n in ("query", "key", "value")} == {(2, 1, 5, 2, 4)}
    logits = np.einsum("bnhd,bmhd->bhnm", found["query"][:, 0], found["key"][:, 0]) / 2
    again = Taps(attention=(1,), hidden=(3, 2))
    _, more = run(params, taps=again)
    visible = np.tril(np.ones((5, 5), bool))
    wanted = jax.nn.softmax(jnp.where(visible, logits, -np.inf), axis=-1)
    np.testing.assert_allclose(more["attention"][:, 0], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(more["hidden"], found["hidden"][:, ::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["hidden", "attention", "value"])
def test_gradients_flow_through_taps(params, name):
    """Those of a layer reach itself and the layers before, and nothing behind."""

    def total(params):
        _, found = STACK.apply({"params": params}, X, taps=Taps(**{name: (1,)}))
        return jnp.sum(jnp.square(found[name]))

    grads = jax.jit(jax.grad(total))(params)["blocks"]["attention"]["qkv_kernel"]
    size = np.abs(grads).max(axis=(1, 2, 3, 4))
    assert (size[:2] > 1e-4).all()
    assert not size[2:].any()


def test_both_stacks_of_a_mixture():
    options = BlockOptions(heads=2, mlp_dim=12, experts=2)
    module = Transformer(4, options, moe_layers=2)
    params = oracle.random_params(module, X)
    _, found = run(params, module, taps=Taps(hidden=(0, 1, 2, 3)))
    prompts = DeepPrompts(np.stack([found["hidden"][:, i, 1:3] for i in (0, 1, 2)]), 1, 1)
    # What a layer would have got anyway changes nothing, in either stack and between them.
    out = run(params, module, deep_prompts=prompts)
    np.testing.assert_allclose(out, found["hidden"][:, 3], rtol=1e-5, atol=1e-5)


def test_nothing_asked_is_nothing_computed(params):
    plain = jax.make_jaxpr(lambda p, x: STACK.apply({"params": p}, x))(params, X)
    seeded = jax.make_jaxpr(
        lambda p, x: STACK.apply({"params": p}, x, sample_seed=np.zeros(2, np.uint32))
    )(params, X)
    assert str(plain).count("\n") == str(seeded).count("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(deep_prompts=DeepPrompts(X[:, :1], 0, 3)), "do not fit a tower of 4 layers"),
        (dict(deep_prompts=DeepPrompts(PROMPTS, 3)), "3 tokens of width 8 at slot 3"),
        (dict(deep_prompts=DeepPrompts(PROMPTS, -6)), "at slot -6"),
        (dict(deep_prompts=DeepPrompts(PROMPTS[..., :4])), "of width 4"),
        (dict(deep_prompts=DeepPrompts(X[None, :1])), "for 2 samples"),
        (dict(taps=Taps(hidden=(4,))), "asks for layer 4, and the tower has layers 0 to 3"),
        (dict(taps=Taps(attention=(3, -1))), "asks twice"),
    ],
    ids=str,
)
def test_refusals(params, options, message):
    with pytest.raises(UserError, match=message):
        run(params, **options)


IMAGE = ViT(size=8, patch=4, width=8, depth=3, heads=2, registers=1)
PIXELS = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
EXTRA = RNG.normal(size=(2, 2, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [{}, {"pool": "average"}, {"pool": "map"}, {"rope": "eva", "pool": "average"}],
    ids=str,
)
def test_extra_tokens_of_an_image(settings):
    module = IMAGE.clone(**settings)
    params = oracle.random_params(module, PIXELS)
    plain = run(params, module, PIXELS)
    taps = Taps(hidden=(2,), attention=(0,))
    pooled, tokens, found = run(params, module, PIXELS, extra_tokens=EXTRA, taps=taps)
    assert tokens.shape == plain[1].shape == (2, 4, 8)
    assert np.abs(pooled - plain[0]).max() > 1e-3
    lead = 1 + (module.pool == "class")
    assert found["hidden"].shape == (2, 1, lead + 4 + 2, 8)
    assert found["attention"].shape[-2:] == (lead + 6, lead + 6)
    shared = run(params, module, PIXELS, extra_tokens=EXTRA[0])
    np.testing.assert_allclose(shared[0][0], pooled[0], rtol=1e-5, atol=1e-5)
    # Their order does not matter: they have no positions.
    turned = run(params, module, PIXELS, extra_tokens=EXTRA[:, ::-1])
    np.testing.assert_allclose(turned[0], pooled, rtol=1e-4, atol=1e-4)
    deep = DeepPrompts(np.zeros((2, 2, 8), np.float32), slot=-2, first=0)
    zeros = [run(params, module, PIXELS, extra_tokens=k * EXTRA, deep_prompts=deep) for k in (1, 3)]
    np.testing.assert_array_equal(zeros[0][0], zeros[1][0])


def test_flattened_patches_take_extra_tokens():
    module = IMAGE.clone(positions="naflex", pool="map")
    patches = RNG.normal(size=(2, 4, 48)).astype(np.float32)
    shape = np.array([[2, 2], [1, 3]], np.int32)
    params = oracle.random_params(module, patches, image_shape=shape)
    pooled, tokens = run(params, module, patches, image_shape=shape, extra_tokens=EXTRA)
    padded = patches.copy()
    padded[1, 3:] = 9.0
    again, _ = run(params, module, padded, image_shape=shape, extra_tokens=EXTRA)
    np.testing.assert_allclose(pooled, again, rtol=1e-5, atol=1e-5)
    assert tokens.shape == (2, 4, 8)
    embed = jax.jit(lambda p, x: module.apply({"params": p}, x, image_shape=shape, method="embed"))
    words = embed(params, patches)
    given, _ = run(params, module, None, embeddings=words, image_shape=shape, extra_tokens=EXTRA)
    np.testing.assert_allclose(given, pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_patch_embeddings_in_place_of_pixels(stem):
    module = IMAGE.clone(stem=stem, patch_dropout=0.5)
    params = oracle.random_params(module, PIXELS)
    seed = np.array([1, 2], np.uint32)
    patches = jax.jit(lambda p: module.apply({"params": p}, PIXELS, method="embed"))(params)
    assert patches.shape == (2, 4, 8)
    for seed in (None, np.array([1, 2], np.uint32)):
        wanted = run(params, module, PIXELS, sample_seed=seed)
        found = run(params, module, None, embeddings=patches, sample_seed=seed)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(extra_tokens=EXTRA[..., :4]), r"extra_tokens \[n, 8\] or \[2, n, 8\]"),
        (dict(extra_tokens=EXTRA[0, 0]), "extra_tokens"),
        (dict(extra_tokens=EXTRA[:1]), "extra_tokens"),
        (dict(embeddings=X), "an image or embeddings, not both"),
    ],
    ids=str,
)
def test_refusals_of_an_image_tower(options, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: IMAGE.init(jax.random.key(0), PIXELS, **options))
    with pytest.raises(UserError, match=r"embeddings \[B, 4, 8\], not \[2, 5, 8\]"):
        jax.eval_shape(lambda: IMAGE.init(jax.random.key(0), None, embeddings=X))


TEXT = TextTransformer(length=6, vocab_size=11, width=8, depth=2, heads=2, end_token=9)
IDS = np.array([[1, 10, 9, 0, 0], [2, 5, 3, 9, 1]], np.int32)


@pytest.mark.parametrize(
    "settings", [{}, {"class_token": True, "pool": "class"}, {"pool": "last"}], ids=str
)
def test_token_embeddings_in_place_of_ids(settings):
    module = TEXT.clone(**settings)
    params = oracle.random_params(module, IDS)
    words = jax.jit(lambda p: module.apply({"params": p}, IDS, method="embed"))(params)
    np.testing.assert_array_equal(words, params["token_embedding"][IDS])
    wanted = run(params, module, IDS)
    found = run(params, module, IDS, embeddings=words)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    changed = run(params, module, IDS, embeddings=words.at[:, 1].set(0.5))
    assert np.abs(changed[0] - wanted[0]).max() > 1e-3
    if module.pool == "last":
        np.testing.assert_array_equal(run(params, module, None, embeddings=words)[0], wanted[0])
    else:
        with pytest.raises(UserError, match="needs the ids beside the embeddings"):
            run(params, module, None, embeddings=words)
    with pytest.raises(UserError, match=r"not \[2, 4, 8\] for ids \[2, 5\]"):
        run(params, module, IDS, embeddings=words[:, :4])


def test_embeddings_within_a_model():
    """A parent asks a tower for its embeddings, changes them, and gives them back."""
    import flax.linen as nn

    class Parent(nn.Module):
        text: nn.Module

        @nn.compact
        def __call__(self, ids):
            prompt = self.param("prompt", nn.initializers.ones, (1, 8))
            words = self.text.embed(ids)
            words = words.at[:, 1:2].set(jnp.broadcast_to(prompt, (len(ids), 1, 8)))
            return self.text(ids, embeddings=words)[0]

    module = Parent(TEXT)
    params = oracle.random_params(module, IDS)
    assert set(params) == {"prompt", "text"}
    grads = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({"params": p}, IDS))))(params)
    assert np.abs(grads["prompt"]).max() > 1e-4
    assert not np.asarray(grads["text"]["token_embedding"])[[10, 5]].any()  # the words replaced
