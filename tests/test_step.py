"""The step's program, before it is compiled: at which precision it multiplies, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from clipjax import rules
from clipjax.data.tokenizers import make_tokenizer
from clipjax.encode.encoder import Encoder
from clipjax.mesh import make_mesh
from clipjax.models import example_batch
from clipjax.prepare import prepare as prepare_config
from clipjax.step import init_state
from tests.tiny_run import tiny_config

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def prepare(*overrides):
    """The tiny run on one device."""
    config = tiny_config("evals={}", *overrides)
    return prepare_config(config, make_mesh(config.mesh, jax.devices()[:1]))


def products(jaxpr):
    """All matrix products and convolutions of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from products(getattr(value, "jaxpr", value))


def is_program(value):
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def full(equation):
    return equation.params["precision"] in (HIGHEST, HIGHEST[0])


def trace(dtype):
    run = prepare(f"model.dtype={dtype}")
    return list(products(run.step.trace(run.state, run.batch).jaxpr.jaxpr))


def test_float32_products_are_at_full_precision():
    """On GPU and TPU the default would round the operands to TF32 or bfloat16."""
    found = trace("float32")
    assert len(found) > 30
    assert all(full(equation) for equation in found)


def test_bfloat16_towers_and_a_float32_loss():
    found = trace("bfloat16")
    # Of attention's logits, kept in float32, the gradient meets bfloat16 queries and keys.
    halves = [e for e in found if jnp.bfloat16 in {x.aval.dtype.type for x in e.invars}]
    others = [e for e in found if e not in halves]
    assert len(halves) > 25
    assert others  # the loss's
    assert all(full(equation) for equation in others)


@pytest.mark.parametrize("field", ["image", "text"])
def test_the_encoder_multiplies_as_the_step_does(field):
    run = prepare("model.dtype=float32")
    config = run.config
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.length)
    encoder = Encoder(run.model, config, tokenizer, run.mesh, batch_size=2)
    batch = {field: example_batch(config.model)[field]}
    embed = encoder.program(lambda p, b: run.model.apply({"params": p}, b)[f"{field}_embedding"])
    program = jax.make_jaxpr(embed)(run.state.params, batch)
    found = list(products(program.jaxpr))
    assert len(found) > 4
    assert all(full(equation) for equation in found)


def test_a_frozen_value_outside_its_bounds_stays():
    frozen = "optim.freeze=(('logit_scale', True), ('.*', False))"
    run = prepare(frozen, "model.init_scale=1000.0")
    state = init_state(run.model, run.config, run.optimizer, run.mesh)
    before = set(rules.paths(state.params))
    batch = {k: np.zeros(v.shape, v.dtype) for k, v in run.batch.items()}
    with jax.set_mesh(run.mesh):
        after, metrics = run.step(state, batch)
    assert float(after.params["logit_scale"]) == pytest.approx(np.log(1000))
    assert float(metrics["logit_scale"]) == pytest.approx(1000, rel=1e-5)
    assert rules.paths(after.params).keys() == before


def test_a_copy_begins_as_what_it_is_of():
    """Whatever that begins as: fresh, or filled from a checkpoint."""
    run = prepare("init={'text_head': {'copy': 'image_head'}}")
    state = init_state(run.model, run.config, run.optimizer, run.mesh)
    params = rules.paths(state.params)
    np.testing.assert_array_equal(params["text_head/out/kernel"], params["image_head/out/kernel"])
    given = {"image_head/out/kernel": np.full(params["image_head/out/kernel"].shape, 2.0)}
    state = init_state(run.model, run.config, run.optimizer, run.mesh, given)
    assert (np.asarray(rules.paths(state.params)["text_head/out/kernel"]) == 2.0).all()
