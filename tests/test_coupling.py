"""Under the gradient cache a model that couples samples is refused before the first step."""

import jax
import pytest

from clipjax.coupling import check_apart
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from clipjax.step import init_state
from tests.test_updates import FREEZE, config

LOSS = {"contrastive": {"kind": "softmax"}}


def check(kind, *overrides, devices=1):
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    made = prepare(config(kind, LOSS, *overrides), mesh)
    check_apart(made, init_state(made.model, made.config, made.optimizer, mesh).params)


def test_a_mean_over_samples_is_found_behind_a_closed_gate():
    with pytest.raises(UserError) as error:
        check("Coupled", "grad_cache=2")
    assert "The model tests.tiny_core:Coupled gives an output 'image_embedding'" in str(error.value)
    assert (
        "config.grad_cache = 2 would change the loss; compute it in the model's `whole_batch`"
        in str(error.value)
    )


def test_without_the_gradient_cache_it_may():
    check("Coupled")


@pytest.mark.parametrize(("kind", "frozen"), [("Remembering", (FREEZE,)), ("Normed", ())])
def test_whole_batch_may_and_dropped_patches_do_not_matter(kind, frozen):
    check(kind, *frozen, "grad_cache=2", "model.image.patch_dropout=0.5", devices=2)


def test_a_mean_is_additive_and_a_product_of_means_is_not():
    check("Means", "grad_cache=2")
    with pytest.raises(UserError, match="gives an output 'product' of a sample that depends"):
        check("Products", "grad_cache=2")
