"""Two towers, their projections, and the space they share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.fields import OUTPUTS
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.heads import Projection, l2_normalise
from clipjax.models.image import ViT
from clipjax.models.text import TextTransformer
from tests.models import transformer_oracle as oracle
from tests.models.program import product_dtypes

IMAGE = ViT(size=8, patch=4, width=8, depth=1, heads=2, patch_dropout=0.5)
TEXT = TextTransformer(length=5, vocab_size=11, width=8, depth=1, heads=2, end_token=10)
MODEL = DualEncoder(
    IMAGE, TEXT, embed_dim=6, init_bias=-10.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (2, 8, 8, 3), np.uint8),
    "text": np.array([[1, 10, 0, 0, 0], [2, 3, 4, 10, 0]], np.int32),
    "sample_seed": np.array([1, 2], np.uint32),
}


@pytest.fixture(scope="module")
def params():
    return oracle.random_params(MODEL, BATCH)


def apply(params, batch, module=MODEL, **options):
    return jax.jit(lambda p, b: module.apply({"params": p}, b, **options))(params, batch)


def test_outputs_are_the_declared_ones(params):
    outputs = apply(params, BATCH)
    assert set(outputs) <= set(OUTPUTS)
    shapes = {name: value.shape for name, value in outputs.items()}
    assert shapes == {
        "image_embedding": (2, 6),
        "text_embedding": (2, 6),
        "image_embedding_raw": (2, 6),
        "text_embedding_raw": (2, 6),
        "image_tokens": (2, 4, 8),
        "text_tokens": (2, 5, 8),
        "logit_scale": (),
        "logit_bias": (),
    }
    for name in ("image_embedding", "text_embedding"):
        assert outputs[name].dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(outputs[name], axis=1), 1, atol=1e-6)
        raw = outputs[f"{name}_raw"]
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        assert raw.dtype == jnp.float32
        assert not np.allclose(length, 1, atol=0.01)
        np.testing.assert_allclose(raw / length, outputs[name], atol=1e-6)


def test_equals_the_oracle(params):
    outputs = apply(params, BATCH)
    exact = oracle.float64(params)
    pixels = (BATCH["image"] / 255.0 - np.array(MODEL.mean)) / np.array(MODEL.std)
    pooled, tokens = oracle.vit(exact["image"], pixels, IMAGE)
    wanted = pooled @ exact["image_head"]["out"]["kernel"]
    np.testing.assert_allclose(outputs["image_embedding_raw"], wanted, rtol=5e-5, atol=5e-5)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["image_embedding"], wanted, atol=2e-5)
    np.testing.assert_allclose(outputs["image_tokens"], tokens, rtol=5e-5, atol=5e-5)
    pooled, _ = oracle.text(exact["text"], BATCH["text"], TEXT)
    wanted = pooled @ exact["text_head"]["out"]["kernel"]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["text_embedding"], wanted, atol=2e-5)
    np.testing.assert_allclose(outputs["logit_scale"], np.exp(exact["logit_scale"]), rtol=1e-6)
    assert outputs["logit_bias"] == params["logit_bias"]


def test_scale_and_bias_start_as_told():
    init = jax.jit(MODEL.clone(init_scale=10.0).init)(jax.random.key(0), BATCH)["params"]
    assert float(init["logit_scale"].value) == pytest.approx(math.log(10))
    assert float(init["logit_bias"].value) == -10
    plain = jax.eval_shape(MODEL.clone(init_bias=None).init, jax.random.key(0), BATCH)["params"]
    assert "logit_bias" not in plain


@pytest.mark.parametrize("field", ["image", "text"])
def test_one_tower_alone(params, field):
    both, alone = apply(params, BATCH), apply(params, {field: BATCH[field]})
    other = {"image": "text", "text": "image"}[field]
    assert f"{other}_embedding" not in alone
    name = f"{field}_embedding"
    np.testing.assert_allclose(alone[name], both[name], atol=1e-6)


def test_captions_of_one_image_are_independent(params):
    texts_BxKxL = np.stack([BATCH["text"], BATCH["text"][::-1], BATCH["text"]], axis=1)
    outputs = apply(params, {"text": texts_BxKxL})
    assert outputs["text_embedding"].shape == (2, 3, 6)
    assert outputs["text_tokens"].shape == (2, 3, 5, 8)
    for k in range(3):
        alone = apply(params, {"text": texts_BxKxL[:, k]})
        for name in ("text_embedding", "text_tokens"):
            np.testing.assert_allclose(outputs[name][:, k], alone[name], atol=1e-6)


def test_text_mask_reaches_the_tower(params):
    mask = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], bool)
    changed = np.where(mask, BATCH["text"], 7)
    found = [apply(params, {"text": x, "text_mask": mask}) for x in (BATCH["text"], changed)]
    embeddings = [f["text_embedding"] for f in found]
    np.testing.assert_allclose(*embeddings, atol=1e-6)
    unmasked = apply(params, {"text": BATCH["text"]})["text_embedding"]
    assert not np.allclose(unmasked[1], embeddings[0][1], atol=1e-3)
    twice = {k: np.stack([v, v], 1) for k, v in {"text": BATCH["text"], "text_mask": mask}.items()}
    np.testing.assert_allclose(
        apply(params, twice)["text_embedding"][:, 1], embeddings[0], atol=1e-6
    )


def test_bytes_and_normalised_floats_are_the_same_image(params):
    mean, std = np.float32(MODEL.mean), np.float32(MODEL.std)
    pixels = (BATCH["image"].astype(np.float32) / 255 - mean) / std
    for name in ("image_embedding", "image_tokens"):
        found = [apply(params, {"image": x})[name] for x in (BATCH["image"], pixels)]
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


def test_training_drops_patches_by_sample_seed(params):
    train = apply(params, BATCH, train=True)
    assert train["image_tokens"].shape == (2, 2, 8)
    turned = {k: v[::-1] for k, v in BATCH.items()}
    other = apply(params, turned, train=True)["image_embedding"][::-1]
    np.testing.assert_allclose(train["image_embedding"], other, atol=1e-6)
    plain = apply(params, BATCH)["text_embedding"]
    np.testing.assert_allclose(train["text_embedding"], plain, atol=1e-6)


def test_half_precision_is_close(params):
    half = DualEncoder(
        IMAGE.clone(dtype="bfloat16"),
        TEXT.clone(dtype="bfloat16"),
        **{f: getattr(MODEL, f) for f in ("embed_dim", "init_bias", "mean", "std")},
        dtype="bfloat16",
    )
    exact, found = apply(params, BATCH), apply(params, BATCH, half)
    assert found["image_tokens"].dtype == jnp.bfloat16
    for name in ("image_embedding", "text_embedding"):
        assert found[name].dtype == jnp.float32
        assert 0 < np.abs(found[name] - exact[name]).max() < 0.05
    shapes = jax.eval_shape(half.init, jax.random.key(0), BATCH)["params"]
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("kind", ["linear", "bias", "mlp", "mlp_half", "none"])
def test_projections(kind):
    x = RNG.normal(size=(3, 6)).astype(np.float32)
    module = Projection(kind, 6 if kind == "none" else 4)
    if kind == "none":
        np.testing.assert_array_equal(module.apply({}, x), x)
        return
    params = oracle.random_params(module, x)
    exact = oracle.float64(params)
    if kind == "mlp":
        assert params["fc_in"]["kernel"].shape == (6, 12)
        wanted = oracle.mlp(x.astype(np.float64), exact, "gelu")
    elif kind == "mlp_half":
        assert {p: leaf["kernel"].shape for p, leaf in params.items()} == {
            "fc_in": (6, 5),
            "fc_out": (5, 4),
        }
        assert all(leaf.keys() == {"kernel"} for leaf in params.values())
        wanted = oracle.mlp(x.astype(np.float64), exact, "gelu")
    else:
        assert ("bias" in params["out"]) is (kind == "bias")
        wanted = oracle.dense(x.astype(np.float64), exact["out"])
    np.testing.assert_allclose(module.apply({"params": params}, x), wanted, atol=1e-5)


def test_projection_refusals():
    x = np.zeros((1, 6), np.float32)
    with pytest.raises(UserError, match="width 6 must equal the shared width 4"):
        Projection("none", 4).init(jax.random.key(0), x)
    with pytest.raises(UserError, match="did you mean 'linear'"):
        Projection("liner", 4).init(jax.random.key(0), x)


def test_normalising_survives_zero():
    x = np.array([[0, 0, 0], [3, 0, 4], [1e-30, 0, 0], [1e18, 0, 0]], np.float32)
    y = l2_normalise(x)
    np.testing.assert_allclose(y[0], 0)
    np.testing.assert_allclose(y[1], [0.6, 0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(y[3], [1, 0, 0], rtol=1e-6)
    gradient = jax.grad(lambda x: l2_normalise(x).sum())(x)
    assert bool(jnp.isfinite(gradient).all())
    np.testing.assert_array_equal(gradient[0], 0)
    # Along the vector nothing changes; across it the change is divided by its length.
    np.testing.assert_allclose(gradient[1], (np.ones(3) - 1.4 * y[1]) / 5, atol=1e-6)


def test_gradient_of_a_dead_tower_is_finite(params):
    """A head that has gone to zero gives zero embeddings; training must be able to go on."""
    dead = params | {"image_head": {"out": {"kernel": np.zeros((8, 6), np.float32)}}}

    def loss(params):
        outputs = MODEL.apply({"params": params}, BATCH, train=True)
        return jnp.sum(outputs["image_embedding"] * outputs["text_embedding"])

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(dead)):
        assert bool(jnp.isfinite(leaf).all())


def training_loss(module, params, batch):
    """The softmax loss, in float32."""
    outputs = module.apply({"params": params}, batch, train=True)
    logits = outputs["logit_scale"] * outputs["image_embedding"] @ outputs["text_embedding"].T
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))


@pytest.fixture(scope="module")
def larger():
    """(model, its parameters, a batch): large enough for averages to mean something."""
    tower = dict(width=32, depth=2, heads=2, qk_norm=True)
    image = ViT(size=16, patch=4, pool="map", **tower)
    text = TextTransformer(length=6, vocab_size=40, end_token=39, **tower)
    batch = {
        "image": RNG.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "text": np.where(np.arange(6) == 4, 39, RNG.integers(1, 39, (8, 6))).astype(np.int32),
        "sample_seed": np.arange(8, dtype=np.uint32),
    }
    model = DualEncoder(image, text, embed_dim=16)
    return model, oracle.random_params(model, batch), batch


def half(model):
    towers = {t: getattr(model, t).clone(dtype="bfloat16") for t in ("image", "text")}
    return model.clone(dtype="bfloat16", **towers)


def test_half_precision_trains_in_the_same_direction(larger):
    model, params, batch = larger

    def run(module):
        loss = lambda p: training_loss(module, p, batch)  # noqa: E731
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        leaves = jax.tree.leaves(gradient)
        assert {x.dtype for x in leaves} == {jnp.dtype("float32")}
        return float(value), np.concatenate([np.ravel(x) for x in leaves])

    (exact, wanted), (value, found) = run(model), run(half(model))
    assert 0 < abs(value - exact) < 0.01 * exact
    assert wanted @ found / np.linalg.norm(wanted) / np.linalg.norm(found) > 0.999
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


def test_half_precision_has_no_other_products(larger):
    """All operands are bfloat16, forward and backward; only the loss multiplies embeddings in float32."""
    model, params, batch = larger
    found = product_dtypes(jax.grad(lambda p: training_loss(half(model), p, batch)), params)
    assert found.pop(("float32",) * 3) == 3
    assert {pair[:2] for pair in found} == {("bfloat16", "bfloat16")}
    exact = product_dtypes(jax.grad(lambda p: training_loss(model, p, batch)), params)
    assert set(exact) == {("float32",) * 3}
    assert exact.total() == found.total() + 3
