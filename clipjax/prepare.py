"""The start-up of everything that runs, compiles or describes a config: train, show, plan and tools.

Nothing is allocated and no data is read. The step is traced here, once for the whole run: a mistake in any setting, and
in any model, loss or optimizer that an experiment brings, shows before a workdir is touched.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from clipjax import optim, rules, updates
from clipjax.batch import example_batch
from clipjax.cost import flops
from clipjax.data.features import makers
from clipjax.errors import UserError, mistakes_in
from clipjax.evals import check_evaluators
from clipjax.forward import describe_model
from clipjax.mesh import batch_sharding, check_batch, remarks
from clipjax.models import boxed_params, make_model, model_parts, needs
from clipjax.objective import Losses, make_losses
from clipjax.platform import target_platform
from clipjax.step import State, abstract_state, make_step
from clipjax.workdir import resolve

# Records of an epoch where the data need not be there, for durations in epochs: they change the schedule's constants,
# not the program.
EPOCH = 1_000_000


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A config on a mesh, checked and traced.

    Attributes:
      config: resolved: durations in samples, the run's end on a whole batch.
      mesh: that it was prepared for.
      model: the module.
      rate: learning rate by step.
      optimizer: over the flat dict of trained parameters; its state is part of `state`.
      losses: `(outputs, batch, samples) -> (total, Told)`.
      batch: the fields of a global batch as ShapeDtypeStructs with shardings.
      state: the `State` as ShapeDtypeStructs with shardings.
      step: the jitted `(state, batch) -> (state, metrics)` that gives `state` away. Call it under `jax.set_mesh(mesh)`:
        then it compiles what was traced here, and does not trace again.
      flops_per_sample: that training needs: without what is repeated to save memory (Chowdhery et al. 2022).
      unchanged: paths of the parameters that no step changes: the program hands them on as they came.
      remarks: what works, but not as a user may think: a sentence each.
    """

    config: ConfigDict
    mesh: Mesh | AbstractMesh
    model: nn.Module
    rate: Callable[[jax.Array], jax.Array]
    optimizer: Any
    losses: Losses
    batch: Mapping[str, jax.ShapeDtypeStruct]
    state: State
    step: Any
    flops_per_sample: float
    unchanged: frozenset[str]
    remarks: list[str]


def prepare(config: ConfigDict, mesh: Mesh | AbstractMesh, epoch: int = EPOCH) -> Prepared:
    """Checks and traces everything that a run of `config` consists of.

    Args:
      config: as `load_config` gives it, or resolved.
      mesh: from `make_mesh(config.mesh)`; its devices need not be there.
      epoch: records of all sources together, for durations in epochs.

    Raises:
      UserError: settings, or parts of an experiment, that cannot work.

    Cost: the model is traced once for its parameters' shapes and once in the step; and once more for its FLOPs where
    the step repeats some of them (remat, gradient cache) or hides them in a fused attention.
    """
    config = resolve(config, epoch)
    check_batch(config.batch_size, mesh, config.grad_cache)
    made_by = makers(config)
    check_evaluators(config.evals)
    model = make_model(config.model)
    one = example_batch(config)
    _check_needs(model, one)
    with mistakes_in(describe_model(model), model):
        boxed = boxed_params(model, one)
    params = nn.unbox(boxed)
    if not params:
        raise UserError(f"{describe_model(model)} has no parameters; there is nothing to train.")
    rate = optim.make_schedule(config)
    optimizer = optim.make_optimizer(config.optim, params, rate, config.batch_size)
    trained, _, _ = optim.split(params, config.optim.freeze)
    updates.read_follow(config.optim.follow, params, trained)
    losses = make_losses(config.losses, mesh, model=_after_the(model), makers=made_by)
    state = abstract_state(model, config, optimizer, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
        for name, x in example_batch(config, config.batch_size).items()
    }
    step = jax.jit(make_step(model, losses, optimizer, config, rate), donate_argnums=0)
    with _ambient(mesh):
        traced = step.trace(state, batch).jaxpr.jaxpr
    work = flops.of_program(traced)
    if _hides_flops(config):
        plain = _plain(config)
        other = make_step(make_model(plain.model), losses, optimizer, plain, rate)
        work = flops.count(other, state, batch)
    said = remarks(boxed, mesh) + _unread(traced, batch, made_by)
    unchanged = _unchanged(traced, state)
    if config.checkpoint.frozen_once and not unchanged:
        said.append(
            "config.checkpoint.frozen_once saves nothing apart: every step changes all parameters, so each checkpoint "
            "holds them all."
        )
    return Prepared(
        config=config,
        mesh=mesh,
        model=model,
        rate=rate,
        optimizer=optimizer,
        losses=losses,
        batch=batch,
        state=state,
        step=step,
        flops_per_sample=work / config.batch_size,
        unchanged=unchanged,
        remarks=said,
    )


def _check_needs(model: nn.Module, batch: Mapping[str, Any]) -> None:
    for field in needs(model):
        if field not in batch:
            raise UserError(
                f"{describe_model(model)} needs the batch field {field!r}, which no feature makes (there are: "
                f"{', '.join(batch)}); add a feature that makes it to config.data.features."
            )


def _unchanged(program: Any, state: State) -> frozenset[str]:
    """Paths of the parameters that a traced step returns as they came."""
    number = jax.tree.unflatten(jax.tree.structure(state), range(len(jax.tree.leaves(state))))
    places = rules.paths(number.params)
    return frozenset(p for p, i in places.items() if program.outvars[i] is program.invars[i])


def _after_the(model: nn.Module) -> str:
    what = describe_model(model)
    return what[0].lower() + what[1:]


def _ambient(mesh: Mesh | AbstractMesh) -> contextlib.AbstractContextManager[Any]:
    if isinstance(mesh, Mesh):
        return jax.set_mesh(mesh)
    return jax.sharding.use_abstract_mesh(mesh)


def _hides_flops(config: ConfigDict) -> bool:
    """Whether the step's program shows other FLOPs than the algorithm's."""
    attention = config.model.get("attention", "auto")
    fused = attention != "einsum" and (attention, target_platform()) != ("auto", "cpu")
    remat = any(part.get("remat", "none") != "none" for _, part in model_parts(config.model))
    return config.grad_cache > 1 or remat or fused


def _plain(config: ConfigDict) -> ConfigDict:
    """The config of a step with the same result that repeats nothing and fuses nothing."""
    plain = ConfigDict(config.to_dict(), type_safe=False)
    plain.grad_cache = 1
    for _, part in model_parts(plain.model):
        if "remat" in part:
            part.remat = "none"
    plain.model.attention = "einsum"  # what a fused kernel multiplies cannot be seen from outside
    return plain


def _unread(program: Any, batch: Mapping[str, Any], made_by: Mapping[str, str]) -> list[str]:
    """Remarks on the fields that no result of the step depends on."""
    used = flops.used_inputs(program)[-len(batch) :]  # the batch is the last argument
    idle = [f for f, is_read in zip(sorted(batch), used, strict=True) if not is_read]
    return [
        f"Neither the model nor a loss reads the batch field {field!r}"
        + (f", which the feature {made_by[field]!r} makes" if field in made_by else "")
        + "; without it the data pipeline has less to do."
        for field in idle
        if field != "sample_seed"  # always there, and read by what is random
    ]
