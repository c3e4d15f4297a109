"""Both losses against float64 oracles, and what the note says of the relaxed sample and the sampled softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from clipjax.mesh import batch_sharding, make_mesh, replicated
from experiments.disambiguated_skipgram.losses import (
    entropy_bonus,
    sampled_cross_entropy,
    sampled_softmax,
)
from experiments.disambiguated_skipgram.model import SkipGram
from experiments.disambiguated_skipgram.sampler import chances, draw_candidates, log_expected
from tests.experiments.disambiguated_skipgram import oracle

B, T, K, V, D = 16, 3, 3, 40, 8
FIELDS = ("sense_scores", "sense_vectors", "output_vectors", "output_bias")


def case(seed=0):
    """(outputs, batch): words of many kinds, some twice, and rows with one target, two and none."""
    rng = np.random.default_rng(seed)
    outputs = {
        "sense_scores": 2 * rng.normal(size=(B, T, K)),
        "sense_vectors": rng.normal(size=(B, K, D)),
        "output_vectors": rng.normal(size=(V, D)),
        "output_bias": rng.normal(size=V),
    }
    targets = rng.integers(V, size=(B, T))
    targets[1], targets[2, 0], targets[3, 1:], targets[4] = -1, -1, -1, 0
    batch = {
        "targets": targets.astype(np.int32),
        "sample_seed": rng.integers(2**32, size=B, dtype=np.uint32),
    }
    return {k: x.astype(np.float32) for k, x in outputs.items()}, batch


def drawn(batch, count):
    """What `sampled_softmax` draws for a batch."""
    key = jax.random.fold_in(jax.random.key(batch["sample_seed"][0]), 1)
    return np.asarray(draw_candidates(key, V, count))


def layout(mesh, outputs, batch):
    """Rows split over the devices, tables over rows and columns."""
    tables = {
        "output_vectors": PartitionSpec("tensor", "fsdp"),
        "output_bias": PartitionSpec("tensor"),
    }
    where = lambda k: NamedSharding(mesh, tables[k]) if k in tables else batch_sharding(mesh)  # noqa: E731
    return tuple({k: jax.device_put(x, where(k)) for k, x in d.items()} for d in (outputs, batch))


MESHES = [{"data": 1}, {"data": 2}, {"data": 4}, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("count", [5, V])
def test_sampled_softmax_is_the_oracles(sizes, count):
    outputs, batch = case()
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    wanted, gradients = oracle.sampled_softmax(
        *(outputs[k] for k in FIELDS), batch["targets"], drawn(batch, count), 0.7
    )

    def loss(outputs, batch):
        return sampled_softmax(outputs, batch, jnp.float32(0), candidates=count, temperature=0.7)

    with jax.set_mesh(mesh):
        (value, _), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            *layout(mesh, outputs, batch)
        )
    assert oracle.distance(value, wanted) < 1e-6
    for name, want in zip(FIELDS, gradients, strict=True):
        assert oracle.distance(found[name], want) < 2e-6, name


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropy_is_the_oracles(devices, temperature):
    _, batch = case()
    logits = np.random.default_rng(1).normal(size=(B, K)).astype(np.float32)
    wanted, gradient = oracle.entropy(logits, batch["targets"], temperature)
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    outputs, batch = layout(mesh, {"sense_logits": logits}, batch)
    loss = lambda o: entropy_bonus(o, batch, temperature=temperature)[0]  # noqa: E731
    value, found = jax.jit(jax.value_and_grad(loss))(outputs)
    assert oracle.distance(value, wanted) < 1e-6
    assert oracle.distance(found["sense_logits"], gradient) < 1e-6


def test_every_class_sampled_is_the_full_cross_entropy():
    outputs, batch = case()
    r = outputs["sense_vectors"][:, :1] * np.ones((1, T, 1), np.float32)
    targets, every = np.maximum(batch["targets"], 0), drawn(batch, V + 7)

    def sampled(table, bias):
        each = sampled_cross_entropy(r, targets, table, bias, every)
        return each.sum()

    def full(table, bias):
        logits = jax.nn.log_softmax(r @ table.T + bias)
        return -jnp.take_along_axis(logits, targets[..., None], -1).sum()

    tables = outputs["output_vectors"], outputs["output_bias"]
    got = jax.jit(jax.value_and_grad(sampled, (0, 1)))(*tables)
    want = jax.jit(jax.value_and_grad(full, (0, 1)))(*tables)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert oracle.distance(a, b) < 1e-6


def test_candidates_are_different_and_log_uniform():
    draws = jax.jit(jax.vmap(lambda key: draw_candidates(key, V, 5)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    draws = np.asarray(draws)
    assert all(len(set(row)) == 5 for row in draws.tolist())
    # The first of them, the largest, is one draw of p.
    counts, p = np.bincount(draws[:, 0], minlength=V), chances(V)
    assert np.isclose(p.sum(), 1)
    assert ((counts - 4000 * p) ** 2 / (4000 * p)).sum() < 77.0  # chi-square, 39 degrees: 99.97 %
    share = np.bincount(draws.ravel(), minlength=V) / 4000
    assert np.abs(share - np.exp(log_expected(V, 5))).max() < 0.03
    assert np.isclose(np.exp(log_expected(V, 5)).sum(), 5, rtol=1e-5)


def test_large_temperature_is_the_mean_of_the_senses():
    outputs, batch = case()
    value = lambda o, tau: sampled_softmax(o, batch, jnp.float32(0), temperature=tau)[0]  # noqa: E731
    mean = outputs | {"sense_scores": np.zeros_like(outputs["sense_scores"])}
    assert np.isclose(value(outputs, 1e6), value(mean, 1.0), rtol=1e-5)


def test_small_temperature_is_one_hot_with_the_frequencies_of_p():
    """The model's own scores of 5,000 samples of one word, two targets each, at a small temperature."""
    z, n = np.array([0.3, -1.0, 1.2]), 5000
    model = SkipGram(vocabulary=4, senses=3, embed_dim=2)
    batch = {
        "centre": np.ones(n, np.int32),
        "context": np.full((n, 2), 2, np.int32),
        "targets": np.full((n, 2), 3, np.int32),
        "sample_seed": np.random.default_rng(0).integers(2**32, size=n, dtype=np.uint32),
    }
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch)["params"])
    params |= {"disambiguation_bias": jnp.tile(jnp.float32(z), 4)}
    apply = jax.jit(lambda p, b: model.apply({"params": p}, b, train=True)["sense_scores"])
    y_Nx2xK = np.asarray(jax.nn.softmax(apply(params, batch) / 1e-4))
    assert (y_Nx2xK.max(-1) > 0.999).mean() > 0.99
    sense_Nx2, p = y_Nx2xK.argmax(-1), oracle.softmax(z)
    pairs = np.bincount(3 * sense_Nx2[:, 0] + sense_Nx2[:, 1], minlength=9)
    wanted = n * np.outer(p, p).ravel()  # the targets of a sample have draws of their own
    assert ((pairs - wanted) ** 2 / wanted).sum() < 28.0  # chi-square, 8 degrees: 99.95 %


def test_temperature_follows_the_samples():
    outputs, batch = case()
    pairs = ((0, 1.0), (1000, 0.5))
    for samples, tau in ((0, 1.0), (500, 0.75), (1000, 0.5), (9999, 0.5)):
        moving = sampled_softmax(outputs, batch, jnp.float32(samples), temperature=pairs)[0]
        fixed = sampled_softmax(outputs, batch, jnp.float32(0), temperature=tau)[0]
        assert np.isclose(moving, fixed, rtol=1e-6)


def test_candidates_change_with_the_batch_only():
    outputs, batch = case()
    other = batch | {"sample_seed": batch["sample_seed"][::-1]}
    same = batch | {"sample_seed": np.r_[batch["sample_seed"][:1], batch["sample_seed"][:0:-1]]}
    value = lambda b: float(sampled_softmax(outputs, b, jnp.float32(0), candidates=5)[0])  # noqa: E731
    assert value(batch) == value(same) != value(other)


def test_replicated_tables_are_read_as_split_ones():
    outputs, batch = case()
    mesh = make_mesh({"data": 8}, jax.devices())
    value = jax.jit(lambda o, b: sampled_softmax(o, b, jnp.float32(0), candidates=5)[0])
    alone = value(outputs, batch)
    with jax.set_mesh(mesh):
        spread = value(*(jax.device_put(d, replicated(mesh)) for d in (outputs, batch)))
    assert np.isclose(alone, spread, rtol=1e-6)
