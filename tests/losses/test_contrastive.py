"""Both contrastive losses against a float64 oracle that forms the whole matrices."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.cost import hlo
from clipjax.errors import UserError
from clipjax.losses import sigmoid_contrastive, softmax_contrastive
from clipjax.losses.softmax import softmax, teacher_targets
from clipjax.losses.targets import Dense, SameId
from clipjax.losses.tiles import LAYOUTS
from clipjax.mesh import AXES, batch_sharding, batch_shards, make_mesh
from tests.losses import oracle

B, D = 24, 12
LOSSES = ("softmax", "sigmoid")
SCALES = [(1.0, 2e-6), (14.3, 2e-6), (100.0, 2e-5)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(seed=0, texts=B, noise=None, images=B, width=D):
    """Random pairs with duplicates among them; with `noise`, texts near their images, as after training."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(images, width))
    if noise is None:
        text = rng.normal(size=(texts, width))
        for x, copy, of in ((image, 3, 2), (text, 5, 4), (text, 7, 4)):
            if copy < len(x):
                x[copy] = x[of]
    else:
        text = image + noise * rng.normal(size=(images, width))
    return unit(image).astype(np.float32), unit(text).astype(np.float32)


def check(
    name,
    image,
    text,
    *,
    mesh=None,
    expected=None,
    scales=SCALES[1:2],
    bias=-3.0,
    wanted=None,
    **given,
):
    """Value and every gradient, each by itself, against the oracle at several scales."""
    loss = functools.partial(
        {"softmax": softmax_contrastive, "sigmoid": sigmoid_contrastive}[name], mesh=mesh, **given
    )
    args = [jnp.asarray(image), jnp.asarray(text)]
    if mesh is not None:
        args = jax.device_put(args, batch_sharding(mesh))
    names = ("image", "text", "scale", "bias")[: 4 if name == "sigmoid" else 3]
    function = jax.value_and_grad(lambda *a: loss(*a)[0], argnums=tuple(range(len(names))))
    # Optimised as in real runs, unlike other tests: the order of sums decides the last bits.
    function = jax.jit(function, compiler_options={"xla_backend_optimization_level": "3"})
    for scale, tolerance in scales:
        case = oracle.case(image, text, scale=scale, bias=bias, **(expected or {}))
        want_value, want_grads = (wanted or getattr(oracle, name))(case)
        value, grads = function(*args, *(jnp.float32(x) for x in (scale, bias)[: len(names) - 2]))
        assert oracle.distance(value, want_value) < tolerance
        for what, got, want in zip(names, grads, want_grads, strict=True):
            assert oracle.distance(got, want) < tolerance, (what, scale)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("block_size", [None, 1, 7, 100])
def test_one_device(name, block_size):
    check(name, *embeddings(), scales=SCALES, block_size=block_size)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("block_size", [None, 5])
def test_devices(name, layout, devices, block_size):
    mesh = make_mesh(devices=jax.devices()[:devices])
    settings = dict(mesh=mesh, layout=layout, block_size=block_size)
    check(name, *embeddings(), scales=SCALES, bias=-10.0, **settings)


MESHES = [
    dict(zip(AXES, sizes, strict=True))
    for sizes in itertools.product((1, 2, 4, 8), repeat=len(AXES))
    if math.prod(sizes) == 8
]


def test_these_are_all_meshes_of_eight_devices():
    assert len({tuple(sizes.values()) for sizes in MESHES}) == 20


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "-".join(map(str, sizes.values())))
@pytest.mark.parametrize(("name", "layout"), list(itertools.product(LOSSES, LAYOUTS)))
def test_meshes(name, layout, sizes):
    # 5 rows a device and 40 texts: blocks of 3 divide neither.
    pairs = embeddings(images=40, texts=40)
    check(name, *pairs, mesh=make_mesh(sizes), layout=layout, block_size=3, scales=SCALES)


@pytest.mark.parametrize(("name", "layout"), list(itertools.product(LOSSES, LAYOUTS)))
@pytest.mark.parametrize(
    "sizes", [{"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "expert": 2}, {"tensor": 8}]
)
def test_rows_that_divide_over_the_batch_axes_only(name, layout, sizes):
    mesh = make_mesh(sizes)
    count = 7 * batch_shards(mesh)
    pairs = embeddings(images=count, texts=count)
    check(name, *pairs, mesh=mesh, layout=layout, block_size=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_devices_that_hold_the_same_rows_share_the_work(layout):
    def flops(sizes):
        loss = functools.partial(softmax_contrastive, mesh=make_mesh(sizes), layout=layout)
        function = jax.jit(jax.grad(lambda *a: loss(*a, 10.0)[0], argnums=(0, 1)))
        return hlo.matmul_flops(function.lower(*embeddings()).compile().as_text())

    shared = flops({"data": 2, "tensor": 2, "expert": 2})
    assert shared == flops({"data": 8})
    assert 0 < shared <= 8 * B * B * D / 8  # of one device


def odd_sizes():
    """(images, texts, width, block size): primes, ones, blocks beyond the batch, and what a die has thrown."""
    rng = np.random.default_rng(5)
    thrown = [tuple(rng.integers(1, 40, 4).tolist()) for _ in range(6)]
    chosen = [(13, 13, 7, 5), (29, 29, 3, 31), (1, 17, 5, 4), (17, 1, 5, 4), (2, 2, 2, 1)]
    return [*chosen, (23, 31, 1, 11), *thrown]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("images", "texts", "width", "block_size"), odd_sizes())
def test_odd_sizes(name, images, texts, width, block_size):
    pairs = embeddings(images=images, texts=texts, width=width)
    if images == texts:
        targets, expected = None, {}
    else:
        targets, expected = _ids(np.random.default_rng(6), texts, images)
    check(name, *pairs, expected=expected, targets=targets, block_size=block_size)


@pytest.mark.parametrize("noise", [0.3, 0.1, 0.02])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_well_separated_pairs_keep_their_digits(noise, layout):
    # At scale 100 the loss is far smaller than the logits (down to e-12), where lse - own would be all rounding.
    image, text = embeddings(noise=noise)
    settings = dict(scales=SCALES[2:], wanted=oracle.separated_softmax)
    check("softmax", image, text, mesh=make_mesh(), layout=layout, **settings)


def _ids(rng, texts, images=B):
    """Groups of several, some of which have members on one side only, and images without a match."""
    image_id, text_id = rng.integers(-1, 8, images), rng.integers(0, 9, texts)
    same = (image_id[:, None] == text_id[None, :]) & (image_id[:, None] >= 0)
    return SameId(jnp.asarray(image_id), jnp.asarray(text_id)), {"rows": same}


def variations():
    """name -> (texts, settings of the loss, what the oracle is told)."""
    rng = np.random.default_rng(1)
    soft = rng.uniform(size=(B, B)) ** 4
    soft[4], soft[:, 6] = 0.0, 0.0
    image_mask, text_mask = rng.uniform(size=B) < 0.7, rng.uniform(size=B) < 0.7
    masks = dict(image_mask=image_mask, text_mask=text_mask)
    weights = dict(
        image_weight=rng.uniform(size=B).astype(np.float32),
        text_weight=rng.uniform(size=B).astype(np.float32),
    )
    ids, same = _ids(rng, B)
    more_ids, more_same = _ids(rng, 3 * B)
    soft = soft.astype(np.float32)
    return {
        "several positives": (B, dict(targets=ids), same),
        "more texts": (3 * B, dict(targets=more_ids), more_same),
        "soft": (B, dict(targets=Dense(jnp.asarray(soft))), dict(rows=soft)),
        "smoothing": (B, dict(label_smoothing=0.1), dict(smoothing=0.1)),
        "masks": (B, masks, masks),
        "weights": (B, weights, weights),
        "everything": (
            B,
            dict(targets=ids, label_smoothing=0.2, **masks, **weights),
            dict(**same, smoothing=0.2, **masks, **weights),
        ),
    }


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("variation", variations())
@pytest.mark.parametrize(
    ("sizes", "layout", "block_size"),
    [
        (None, "gather", 7),
        ({"data": 8}, "gather", 5),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "ring", 2),
    ],
)
def test_variations(name, variation, sizes, layout, block_size):
    texts, given, expected = variations()[variation]
    mesh = None if sizes is None else make_mesh(sizes)
    where = dict(mesh=mesh, layout=layout, block_size=block_size)
    check(name, *embeddings(texts=texts), expected=expected, **where, **given)


@pytest.mark.parametrize(("sizes", "layout"), [(None, "gather"), ({"fsdp": 8}, "ring")])
@pytest.mark.parametrize("own_share", [0.0, 0.5])
def test_teacher(sizes, layout, own_share):
    image, text = embeddings()
    mesh = None if sizes is None else make_mesh(sizes)
    settings = dict(mesh=mesh, layout=layout, block_size=5)
    rng = np.random.default_rng(2)
    taught = [unit(rng.normal(size=(B, 7))).astype(np.float32) for _ in range(2)]
    logits = 20.0 * np.asarray(taught[0], np.float64) @ np.asarray(taught[1], np.float64).T
    share = lambda axis: np.exp(logits) / np.exp(logits).sum(axis, keepdims=True)  # noqa: E731
    rows, columns = (own_share * np.eye(B) + (1 - own_share) * share(axis) for axis in (1, 0))

    make = functools.partial(teacher_targets, own_share=own_share, **settings)
    targets = jax.jit(make)(*taught, 20.0)
    expected = dict(rows=rows, columns=columns)
    check("softmax", image, text, expected=expected, targets=targets, **settings)

    # A teacher is a constant, also where it is the model itself.
    through = (
        jax.grad(
            lambda x: softmax_contrastive(image, text, 5.0, targets=make(x, taught[1], 20.0))[0]
        )(taught[0])
        if mesh is None
        else 0.0
    )
    assert not np.any(through)


def test_captions_are_several_positives():
    image, text = embeddings(texts=3 * B)
    outputs = dict(
        image_embedding=image, text_embedding=text.reshape(B, 3, D), logit_scale=np.float32(9.0)
    )
    value, _ = softmax(outputs, {}, block_size=10)
    same = np.repeat(np.eye(B), 3, axis=1)
    want, _ = oracle.softmax(oracle.case(image, text, scale=9.0, rows=same))
    assert oracle.distance(value, want) < 2e-6


@pytest.mark.parametrize("name", LOSSES)
def test_one_pair(name):
    image, text = embeddings()
    check(name, image[:1], text[:1], bias=-1.0)
    loss = {"softmax": softmax_contrastive, "sigmoid": sigmoid_contrastive}[name]
    args = (image[:1], text[:1], 5.0) + ((-1.0,) if name == "sigmoid" else ())
    assert all(np.isfinite(g).all() for g in jax.grad(lambda *a: loss(*a)[0], (0, 1, 2))(*args))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_left_is_zero(name):
    image, text = embeddings()
    loss = {"softmax": softmax_contrastive, "sigmoid": sigmoid_contrastive}[name]
    more = (-1.0,) if name == "sigmoid" else ()

    def value(image, scale):
        return loss(image, text, scale, *more, image_mask=np.zeros(B, bool))[0]

    found, grads = jax.value_and_grad(value, (0, 1))(jnp.asarray(image), 5.0)
    assert float(found) == 0.0
    assert all(not np.any(g) for g in grads)


def test_masked_entries_do_not_matter():
    image, text = embeddings(noise=0.5)
    mask = np.arange(B) < 15
    masked, _ = softmax_contrastive(image, text, 9.0, image_mask=mask, text_mask=mask, block_size=4)
    alone, _ = softmax_contrastive(image[:15], text[:15], 9.0)
    assert oracle.distance(masked, alone) < 1e-6


def test_metrics_do_not_depend_on_the_mesh():
    image, text = embeddings(noise=1.0)
    _, alone = softmax_contrastive(image, text, 10.0)
    _, split = softmax_contrastive(image, text, 10.0, mesh=make_mesh(), layout="ring", block_size=2)
    _, ids = softmax_contrastive(
        image, text, 10.0, targets=SameId(jnp.arange(B), jnp.arange(B)), block_size=5
    )
    similarity = image @ text.T
    hits = {
        "image_to_text_accuracy": np.mean(similarity.argmax(1) == np.arange(B)),
        "text_to_image_accuracy": np.mean(similarity.argmax(0) == np.arange(B)),
    }
    assert 0.1 < hits["image_to_text_accuracy"] < 0.9
    for metrics in (alone, split, ids):
        assert jax.tree.map(float, metrics) == pytest.approx(hits)


def test_sigmoid_metrics():
    image, text = embeddings()
    _, metrics = sigmoid_contrastive(image, text, 10.0, -2.0, mesh=make_mesh(), block_size=2)
    logits = 10.0 * image @ text.T - 2.0
    assert metrics["positive_logit"] == pytest.approx(np.diag(logits).mean(), rel=1e-5)
    others = logits[~np.eye(B, dtype=bool)].mean()
    assert metrics["negative_logit"] == pytest.approx(others, rel=1e-5)


def test_equal_embeddings_are_no_hits():
    same = np.ones((B, D), np.float32) / np.sqrt(D)
    loss, metrics = softmax_contrastive(same, same, 10.0)
    assert float(loss) == pytest.approx(np.log(B), rel=1e-6)
    assert float(metrics["image_to_text_accuracy"]) == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(text_BxD=np.zeros((B - 1, D))),
            r"as many images as texts, not \[24, 12\] and \[23, 12\]",
        ),
        (dict(text_BxD=np.zeros((B, D + 1))), r"images and texts \[B, D\], not \[24, 12\] and"),
        (dict(layout="rings"), "did you mean 'ring'"),
        (dict(block_size=0), "at least 1"),
        (dict(precision="hgh"), "no precision 'hgh'.*did you mean 'high'"),
        (dict(label_smoothing=1.0), "label_smoothing must be at least 0 and below 1"),
        (dict(image_mask=np.ones(3)), r"image_mask must have shape \[24\], not \[3\]"),
        (dict(text_weight=np.ones((B, 1))), r"text_weight must have shape \[24\], not \[24, 1\]"),
        (dict(targets=SameId(np.arange(B), np.arange(3))), r"'id' of columns has shape \[3\]"),
        (dict(mesh="three"), "24 does not divide over 5 devices"),
    ],
)
def test_refusals(change, words):
    image, text = embeddings()
    kwargs = dict(image_BxD=image, text_BxD=text, logit_scale=1.0) | change
    if "mesh" in change:
        kwargs["mesh"] = make_mesh(devices=jax.devices()[:5])
    with pytest.raises(UserError, match=words):
        softmax_contrastive(**kwargs)
