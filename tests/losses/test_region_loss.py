"""CLOC's region loss against a float64 oracle, and what its paper says of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.gradient_cache import value_and_grad
from clipjax.losses import region_contrastive, softmax_contrastive
from clipjax.losses.regions.contrastive import region_softmax
from clipjax.losses.tiles import LAYOUTS
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.objective import make_losses
from tests.losses import oracle
from tests.losses.test_contrastive import SCALES, unit

B, M, D = 8, 3, 6
OFF = 2.0  # above any cosine: no filter


def case(seed=0, images=B, count=M, noise=None):
    """(regions, texts, mask): phrases repeat, as they are and nearly; with `noise`, regions near their texts."""
    rng = np.random.default_rng(seed)
    shape = (images, count, D)
    phrases = unit(rng.normal(size=(images * count // 2, D)))
    text = phrases[rng.integers(len(phrases), size=shape[:2])]
    text = unit(text + rng.choice([0.0, 0.1], size=shape[:2])[..., None] * rng.normal(size=shape))
    region = rng.normal(size=shape) if noise is None else text + noise * rng.normal(size=shape)
    mask = rng.uniform(size=shape[:2]) < 0.7
    return unit(region).astype(np.float32), text.astype(np.float32), mask


def check(region, text, masks, *, threshold=0.3, mesh=None, scales=SCALES, **settings):
    """Value, every gradient and the metric `conflicts`, compiled once for all masks and scales."""

    loss = functools.partial(
        region_contrastive, mesh=mesh, conflict_threshold=threshold, **settings
    )
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 3), has_aux=True))
    put = (lambda x: x) if mesh is None else lambda x: jax.device_put(x, batch_sharding(mesh))
    for mask in masks:
        for scale, tolerance in scales:
            want, want_grads, conflicts = oracle.regions(region, text, mask, scale, threshold)
            (value, metrics), grads = step(put(region), put(text), put(mask), scale)
            assert oracle.distance(value, want) < tolerance
            for got, wanted in zip(grads, want_grads, strict=True):
                assert oracle.distance(got, wanted) < tolerance
            assert metrics.get("conflicts", 0.0) == pytest.approx(conflicts, rel=1e-6)
            assert ("conflicts" in metrics) == (threshold <= 1.0)


@pytest.mark.parametrize(
    ("devices", "layout", "block_size"),
    [
        (1, "gather", 5),
        (2, "gather", 5),
        (2, "ring", None),
        (4, "gather", 4),
        (4, "ring", 5),
        (8, "gather", 7),
        (8, "ring", 2),
    ],
)
def test_devices(devices, layout, block_size):
    region, text, mask = case()
    mesh = make_mesh(devices=jax.devices()[:devices])
    masks = (mask, np.ones_like(mask))
    check(region, text, masks, mesh=mesh, layout=layout, block_size=block_size)


@pytest.mark.parametrize("threshold", [OFF, 0.9, -0.2])
def test_thresholds(threshold):
    region, text, mask = case()
    check(region, text, (mask, np.ones_like(mask)), threshold=threshold)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mesh_with_all_kinds_of_axes(layout):
    region, text, mask = case(count=4)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    check(region, text, (mask,), mesh=mesh, layout=layout, block_size=3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_regions_an_image(count):
    masks = [case(seed, count=count)[2] for seed in range(4)]
    masks.append(np.eye(B, count, dtype=bool) & (np.arange(B) == 0)[:, None])  # a single region
    check(*case(1, count=count)[:2], masks, scales=SCALES[1:2])


@pytest.mark.parametrize("noise", [0.1, 0.01])
def test_a_small_loss_keeps_its_digits(noise):
    # Phrases that repeat left out, the others are far apart: at scale 100 the loss is e-22 and e-31.
    region, text, mask = case(2, noise=noise)
    assert oracle.regions(region, text, mask, 100.0, 0.3)[0] < 1e-21
    check(region, text, (mask,), scales=SCALES[2:])


@functools.partial(jax.jit, static_argnames="conflict_threshold")
def value_and_grads(region, text, mask, conflict_threshold=0.9):
    """((value, metrics), gradients by region, text, scale)."""
    step = jax.value_and_grad(region_contrastive, argnums=(0, 1, 3), has_aux=True)
    return step(region, text, mask, 14.3, conflict_threshold=conflict_threshold)


def test_one_region_an_image_is_the_loss_of_the_images():
    region, text, _ = case(count=1)
    everything = np.ones((B, 1), bool)
    step = jax.value_and_grad(softmax_contrastive, argnums=(0, 1, 2), has_aux=True)
    (want, _), want_grads = jax.jit(step)(region[:, 0], text[:, 0], 14.3)
    (value, _), grads = value_and_grads(region, text, everything, conflict_threshold=OFF)
    assert float(value) == pytest.approx(float(want), rel=1e-7)
    for got, wanted in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(np.squeeze(got), wanted, rtol=1e-6, atol=1e-8)


def test_nothing_but_positives():
    region, text, mask = case()
    (value, metrics), grads = value_and_grads(region, text, mask, conflict_threshold=-1.1)
    assert float(value) == 0.0
    assert not any(np.any(g) for g in grads)
    assert metrics == {
        "region_to_text_accuracy": 1.0,
        "text_to_region_accuracy": 1.0,
        "conflicts": mask.sum() - 1,
    }


def test_two_images_with_the_same_text():
    region, text, _ = case(images=2, count=1)
    region[1], text[1] = region[0], text[0]
    both = np.ones((2, 1), bool)
    (unfiltered, _), _ = value_and_grads(region, text, both, OFF)
    (filtered, metrics), grads = value_and_grads(region, text, both)
    assert float(unfiltered) == pytest.approx(np.log(2), rel=1e-6)
    assert float(filtered) == 0.0
    assert float(metrics["conflicts"]) == 1.0
    assert not any(np.any(g) for g in grads)


def test_a_repeated_text_is_as_if_it_were_not_there():
    rng = np.random.default_rng(3)
    region, text = (unit(rng.normal(size=(7, 1, 64))).astype(np.float32) for _ in range(2))
    text[4] = text[2]
    (value, _), _ = value_and_grads(region, text, np.ones((7, 1)))

    @jax.jit
    def alone(row, there):
        """A row's and its column's cross-entropy, halved, over the part of the batch that is there."""
        one = (jnp.arange(7) == row).astype(jnp.float32)
        loss, _ = softmax_contrastive(
            region[:, 0],
            text[:, 0],
            14.3,
            image_mask=there,
            text_mask=there,
            image_weight=one,
            text_weight=one,
        )
        return loss * jnp.sum(there)

    others = {2: 4, 4: 2}
    parts = [alone(row, np.arange(7) != others.get(row, 7)) for row in range(7)]
    assert float(value) == pytest.approx(float(sum(parts)) / 7, rel=1e-6)
    (unfiltered, _), _ = value_and_grads(region, text, np.ones((7, 1)), OFF)
    assert float(unfiltered) > float(value)


def test_a_text_at_the_threshold_counts():
    half = np.array([[[0.5, 0.5, 0.5, 0.5]], [[1.0, 0.0, 0.0, 0.0]]], np.float32)
    below = float(np.nextafter(np.float32(0.5), np.float32(0.0)))
    for threshold, conflicts in ((0.5, 0.0), (below, 1.0)):
        (_, metrics), _ = value_and_grads(half, half, np.ones((2, 1)), threshold)
        assert float(metrics["conflicts"]) == conflicts


def test_places_without_a_region_do_not_matter():
    region, text, mask = case()
    want = value_and_grads(region, text, mask)
    for junk in (7.0, np.inf, np.nan):
        other = [np.where(mask[..., None], x, np.float32(junk)) for x in (region, text)]
        jax.tree.map(np.testing.assert_array_equal, value_and_grads(*other, mask), want)
    for grad in want[1][:2]:
        assert not np.any(grad[~mask])
        assert np.any(grad[mask])


def test_a_batch_without_regions_is_the_loss_of_its_images():
    region, text, mask = case()
    nothing = np.zeros_like(mask)
    losses = make_losses(
        {
            "contrastive": {"kind": "softmax"},
            "regions": {"kind": "region_softmax"},
            "boxes": {"kind": "grounding"},
        },
        mesh=None,
    )
    boxes = np.zeros((B, M, 4), np.float32)
    outputs = dict(
        image_embedding=region[:, 0],
        text_embedding=text[:, 0],
        region_embedding=region,
        region_text_embedding=text,
        grounded_boxes=np.full_like(boxes, np.nan),
        logit_scale=np.float32(14.3),
    )
    batch = dict(region_mask=nothing, boxes=boxes)
    step = jax.jit(jax.value_and_grad(losses, has_aux=True))
    (total, (metrics, _)), grads = step(outputs, batch, jnp.float32(0.0))
    names = ("image_embedding", "text_embedding", "logit_scale")
    alone = jax.jit(jax.value_and_grad(lambda *a: softmax_contrastive(*a)[0], (0, 1, 2)))
    want, want_grads = alone(*(outputs[name] for name in names))
    assert float(total) == float(want)
    for name, wanted in zip(names, want_grads, strict=True):
        np.testing.assert_array_equal(grads[name], wanted)
    assert not any(np.any(grads[name]) for name in grads if name not in names)
    assert all(np.isfinite(x) for x in metrics.values())
    assert float(metrics["regions/annotated"]) == float(metrics["boxes/annotated"]) == 0.0
    assert float(metrics["regions/conflicts"]) == 0.0


def test_entry_of_a_config_weighs_by_the_share_of_images_with_regions():
    region, text, mask = case()
    mask[[1, 4, 5]] = False
    mask[0] = True
    outputs = dict(region_embedding=region, region_text_embedding=text, logit_scale=9.0)
    batch = dict(region_mask=mask, boxes=np.zeros((B, M, 4)))
    share = mask.any(1).mean()
    assert 0.0 < share < 1.0
    plain, found = region_contrastive(region, text, mask, 9.0, conflict_threshold=0.3)
    want = {**found, "annotated": share}

    mesh = make_mesh()  # on each of its devices one image, some without any region
    placed = jax.tree.map(
        lambda x: jax.device_put(x, batch_sharding(mesh) if np.ndim(x) else None), (outputs, batch)
    )
    for where, given in ((None, (outputs, batch)), (mesh, placed)):
        entry = functools.partial(region_softmax, mesh=where, conflict_threshold=0.3)
        value, metrics = jax.jit(entry)(*given)
        assert float(value) == pytest.approx(float(share * plain), rel=1e-6)
        assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, want))


def test_accuracies_are_among_the_pairs_that_count():
    region, text, mask = case(4, noise=0.8)
    r, t = region[mask], text[mask]
    similarity, own = r @ t.T, np.eye(len(r), dtype=bool)
    counts = own | (t @ t.T <= 0.9)
    rivals = np.where(counts & ~own, similarity, -np.inf)
    hits = [np.mean(np.diag(similarity) > rivals.max(axis)) for axis in (1, 0)]
    _, metrics = region_contrastive(region, text, mask, 9.0, block_size=5)
    assert float(metrics["region_to_text_accuracy"]) == pytest.approx(hits[0])
    assert float(metrics["text_to_region_accuracy"]) == pytest.approx(hits[1])
    assert float(metrics["conflicts"]) == pytest.approx((~counts).sum() / len(r))
    assert 0.1 < hits[0] < 0.95
    assert not counts.all()


def test_gradient_cache():
    """Micro-batches hold different numbers of regions, and their texts are each other's rivals."""
    _, text, mask = case()
    mask[:2] = False
    rng = np.random.default_rng(5)
    batch = {"seen": rng.normal(size=(B, M, 5)), "region_text": text, "region_mask": mask}
    batch = {k: jnp.asarray(x) for k, x in batch.items()} | {"boxes": jnp.zeros((B, M, 4))}
    params = {"w": rng.normal(size=(5, D)), "v": np.eye(D) + 0.1, "scale": np.float32(2.0)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    mesh = make_mesh(devices=jax.devices()[:2])

    def encode(params, rows):
        normal = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        return {
            "region_embedding": normal(rows["seen"] @ params["w"]),
            "region_text_embedding": normal(rows["region_text"] @ params["v"]),
            "logit_scale": jnp.exp(params["scale"]),
        }

    @functools.partial(jax.jit, static_argnums=2)
    def step(params, batch, chunks):
        loss = functools.partial(region_softmax, batch=batch, mesh=mesh, conflict_threshold=0.6)
        entry = lambda _, outputs: loss(outputs)  # noqa: E731
        return value_and_grad(encode, entry, params, batch, chunks)

    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, batch_sharding(mesh))
        (want, _), want_grads = step(params, placed, 1)
        (value, metrics), grads = step(params, placed, 4)
    assert float(metrics["conflicts"]) > 0.0
    assert float(value) == pytest.approx(float(want), rel=1e-6)
    for name, got in grads.items():
        assert oracle.distance(got, want_grads[name]) < 2e-6, name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(text_BxMxD=np.zeros((B, M + 1, D))),
            r"a mask \[B, M\] that are not empty, not \[8, 3, 6\], \[8, 4, 6\] and \[8, 3\]",
        ),
        (dict(mask_BxM=np.ones(B)), r"and \[8\]"),
        (
            dict(region_BxMxD=np.zeros((B, D)), text_BxMxD=np.zeros((B, D))),
            r"takes regions and texts \[B, M, D\]",
        ),
        (dict(layout="rings"), "did you mean 'ring'"),
    ],
)
def test_refusals(change, words):
    region, text, mask = case()
    given = dict(region_BxMxD=region, text_BxMxD=text, mask_BxM=mask, logit_scale=1.0) | change
    with pytest.raises(UserError, match=words):
        region_contrastive(**given)


def test_a_model_or_a_batch_without_regions():
    region, text, mask = case()
    outputs = dict(region_embedding=region, region_text_embedding=text, logit_scale=1.0)
    with pytest.raises(UserError, match=r"'region_mask'.*config\.data\.features\.regions"):
        region_softmax(outputs, {})
    del outputs["region_embedding"]
    batch = dict(region_mask=mask, boxes=np.zeros((B, M, 4)))
    with pytest.raises(UserError, match=r"'region_embedding'.*'region_dual_encoder'"):
        region_softmax(outputs, batch)
