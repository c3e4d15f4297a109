"""Adapters: nothing at first, trained alone, added and merged as functions of parameters."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from clipjax import rules
from clipjax.errors import UserError
from clipjax.models import (
    boxed_params,
    example_batch,
    image_section,
    make_model,
    model_section,
    text_section,
)
from clipjax.models.adapters import add_lora, merge_lora
from clipjax.models.options import ADAPTED
from tests.models import transformer_oracle as oracle

TOWER = dict(width=8, depth=2, heads=2)
IMAGE = image_section(size=8, patch=4, pool="map", stem="conv", mlp="swiglu", **TOWER)
TEXT = text_section("bert", length=5, vocab_size=11, mlp_dim=12, **TOWER)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8),
    "text": np.array([[1, 10, 0, 0, 0], [2, 3, 4, 10, 0]], np.int32),
}
EVERY = tuple(t for t in ADAPTED)


def config(**model):
    return ConfigDict({"model": model_section(IMAGE, TEXT, embed_dim=6, **model)}, type_safe=False)


@pytest.fixture(scope="module")
def params():
    return oracle.random_params(make_model(config().model), BATCH)


def outputs(params, config):
    model = make_model(config.model)
    found = jax.jit(lambda p, b: model.apply({"params": p}, b))(params, BATCH)
    return {k: np.asarray(found[k]) for k in ("image_embedding", "text_embedding")}


def shapes(config):
    boxed = boxed_params(make_model(config.model), example_batch(config.model))
    return {p: x.shape for p, x in rules.paths(nn.unbox(boxed)).items()}


@pytest.mark.parametrize("targets", [("query", "value"), ("fc_out",), EVERY], ids=str)
def test_added_trained_and_merged(params, targets):
    plain = config()
    before = outputs(params, plain)
    more, adapted = add_lora(params, plain, rank=2, alpha=4.0, targets=targets, seed=3)
    assert plain.model.image.lora_rank == 0  # untouched
    assert {p: x.shape for p, x in rules.paths(more).items()} == shapes(adapted)
    after = outputs(more, adapted)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])

    flat, rng = rules.paths(more), np.random.default_rng(0)
    own = [p for p in flat if p.endswith("lora_b")]
    assert own
    assert not any("pool/" in p or "stem" in p for p in own)
    trained = {p: 0.3 * rng.normal(size=flat[p].shape).astype(np.float32) for p in own}
    trained = rules.tree(flat | trained)
    changed = outputs(trained, adapted)
    assert min(np.abs(changed[n] - before[n]).max() for n in before) > 1e-3
    merged, back = merge_lora(trained, adapted)
    assert {p: x.shape for p, x in rules.paths(merged).items()} == shapes(back) == shapes(plain)
    again = outputs(merged, back)
    for name in changed:
        np.testing.assert_allclose(changed[name], again[name], rtol=1e-4, atol=1e-5)


def test_a_model_that_begins_with_adapters(params):
    """Computes what the same parameters do without them."""
    adapted = config()
    adapted.model.image.update(lora_rank=2, lora_targets=EVERY)
    model = make_model(adapted.model)
    fresh = jax.jit(lambda k: nn.unbox(model.init(k, BATCH)["params"]))(jax.random.key(0))
    flat = rules.paths(fresh)
    own = {path: flat[path] for path in flat if path not in rules.paths(params)}
    assert all(("lora_b" in path) == (not value.any()) for path, value in own.items())
    plain = rules.tree({path: value for path, value in flat.items() if path not in own})
    jax.tree.map(np.testing.assert_array_equal, outputs(fresh, adapted), outputs(plain, config()))


def test_one_part_alone(params):
    more, adapted = add_lora(params, config(), rank=1, parts=("text",))
    new = rules.paths(more).keys() - rules.paths(params).keys()
    assert {p.split("/")[0] for p in new} == {"text"}
    assert (adapted.model.image.lora_rank, adapted.model.text.lora_rank) == (0, 1)


def test_refusals(params):
    with pytest.raises(UserError, match=r"no part 'imag' .*did you mean 'image'"):
        add_lora(params, config(), rank=1, parts=("imag",))
    with pytest.raises(UserError, match=r"lora_targets cannot name 'quer'.*did you mean 'query'"):
        add_lora(params, config(), rank=1, targets=("quer",))
    with pytest.raises(UserError, match="at least 1, not 0"):
        add_lora(params, config(), rank=0)
    with pytest.raises(UserError, match="has no products called fc_gate"):
        add_lora(params, config(), rank=1, targets=("fc_gate",), parts=("text",))
    with pytest.raises(UserError, match="no adapters to merge"):
        merge_lora(params, config())
    more, adapted = add_lora(params, config(), rank=1)
    with pytest.raises(UserError, match="has adapters already"):
        add_lora(more, adapted, rank=1)
    negative = config()
    negative.model.image.lora_rank = -1
    with pytest.raises(UserError, match="lora_rank must be at least 0"):
        shapes(negative)
    mixture = config()
    mixture.model.image = image_section(size=8, patch=4, experts=2, lora_rank=1, **TOWER)
    assert any("moe/blocks/attention/lora_a" in path for path in shapes(mixture))
    mixture.model.image.lora_targets = ("fc_in",)
    with pytest.raises(UserError, match="A mixture of experts has no adapters"):
        shapes(mixture)
