"""The training state and the one step that changes it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from clipjax import optim, rules, updates
from clipjax.batch import example_batch
from clipjax.convert.pretrained import copies
from clipjax.errors import UserError
from clipjax.forward import UPDATES, describe_model, forward, has_whole_batch, join
from clipjax.gradient_cache import value_and_grad
from clipjax.mesh import parameter_shardings, replicated
from clipjax.models import boxed_params, initialise, matmul_precision
from clipjax.objective import Losses, Told


@flax.struct.dataclass
class State:
    """What training changes: `step` int32, `params`, optimizer state, and the average of the trained parameters.

    `ema` is flat, path -> array, and empty without averaging.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    ema: dict[str, jax.Array]

    def averaged(self) -> Any:
        """Parameters for evaluation: averaged where there is an average."""
        return rules.tree(rules.paths(self.params) | self.ema) if self.ema else self.params


def make_step(
    model: nn.Module,
    losses: Losses,
    optimizer: optax.GradientTransformation,
    config: Mapping[str, Any],
    rate: Callable[[jax.Array], jax.Array],
) -> Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The step `(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    Its order: the model's outputs (micro-batch by micro-batch under `config.grad_cache`), `whole_batch` of a model that
    has it, losses, gradients, optimizer, `optim.clip_values`, updates, `optim.follow`, average.
    """
    settings, batch_size, decay = config["optim"], config["batch_size"], config["optim"]["ema"]
    chunks = config["grad_cache"]

    def step(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        with matmul_precision(config["model"]):
            return update(state, batch)

    def update(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        trained, frozen, _ = optim.split(state.params, settings["freeze"])
        samples = state.step.astype(jnp.float32) * batch_size

        def encode(trained: dict[str, jax.Array], rows: Mapping[str, jax.Array]) -> Any:
            outputs, new = forward(model, rules.tree(trained | frozen), rows)
            if new and chunks > 1:
                raise UserError(
                    f"{describe_model(model)} updates {min(new)!r} from some rows of the batch, which "
                    f"config.grad_cache = {chunks} cannot make exact; write the update in the model's `whole_batch`, "
                    "or set config.grad_cache to 1."
                )
            return outputs | ({UPDATES: new} if new else {})

        def objective(trained: dict[str, jax.Array], outputs: Any) -> tuple[jax.Array, Told]:
            outputs = dict(outputs)
            new = outputs.pop(UPDATES, {})
            if has_whole_batch(model):
                outputs, more = join(model, rules.tree(trained | frozen), outputs, batch)
                new |= more
            total, told = losses(outputs, batch, samples)
            scalars = {k: outputs[k] for k in ("logit_scale", "logit_bias") if k in outputs}
            updates.check(new, frozen, trained, describe_model(model))
            updates.check(told.updates, frozen, trained, "A loss")
            for path in sorted(new.keys() & told.updates.keys()):
                raise UserError(f"{path!r} has an update from the model and one from a loss.")
            return total, Told(told.metrics | scalars, new | told.updates)

        (loss, (metrics, new)), grads = value_and_grad(encode, objective, trained, batch, chunks)
        steps, new_optimizer = optimizer.update(grads, state.optimizer, trained)
        trained = optax.apply_updates(trained, steps)
        params = optim.clip_values(rules.tree(trained | frozen), settings["clip_values"])
        flat = rules.paths(params) | frozen  # a frozen value stays, even outside its bounds
        follow = updates.read_follow(settings["follow"], state.params, trained)
        if new or follow:
            where = _layouts(model, config)
            flat |= updates.pinned(new, where)
            flat |= updates.pinned(updates.followed(follow, flat, new, samples), where)
        ema = state.ema
        if decay:
            # Early averages lean on few steps, so the average's memory grows with the run (as in TensorFlow's EMA).
            d = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
            ema = {p: d * old + (1.0 - d) * flat[p] for p, old in ema.items()}
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate(state.step),
        }
        return State(state.step + 1, rules.tree(flat), new_optimizer, ema), metrics

    return step


def _layouts(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """How each parameter is split over the ambient mesh, by path; nothing where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    where = parameter_shardings(boxed_params(model, example_batch(config)), mesh)
    return {path: sharding.spec for path, sharding in rules.paths(where).items()}


def init_state(
    model: nn.Module,
    config: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    pretrained: Mapping[str, Any] | None = None,
) -> State:
    """A fresh state, born sharded over the mesh.

    Args:
      model: the module.
      config: of the run.
      optimizer: from `optim.make_optimizer`.
      mesh: where the state will live.
      pretrained: flat path -> array, in place of the fresh values.
    """
    shapes = abstract_state(model, config, optimizer, mesh)
    example = {k: np.zeros(v.shape, v.dtype) for k, v in example_batch(config).items()}
    pretrained = dict(pretrained or {})
    copied = copies(config["init"], shapes.params)

    def fresh(seed: jax.Array, given: dict[str, jax.Array]) -> State:
        flat = rules.paths(nn.unbox(initialise(model, jax.random.key(seed), example)))
        flat |= {p: x.astype(flat[p].dtype) for p, x in given.items()}
        flat |= {p: flat[source].astype(flat[p].dtype) for p, source in copied.items()}
        params = rules.tree(flat)
        trained, _, _ = optim.split(params, config["optim"]["freeze"])
        ema = dict(trained) if config["optim"]["ema"] else {}
        return State(jnp.int32(0), params, optimizer.init(trained), ema)

    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    with jax.set_mesh(mesh):
        return jax.jit(fresh, out_shardings=shardings)(config["seed"], pretrained)


def abstract_state(
    model: nn.Module, config: Mapping[str, Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> State:
    """Shapes, dtypes and shardings of the state, with nothing allocated.

    The optimizer's moments and the average are split as their parameters are; its counters are whole everywhere.
    """
    boxed = boxed_params(model, example_batch(config))
    where = parameter_shardings(boxed, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), where
    )
    trained, _, _ = optim.split(params, config["optim"]["freeze"])

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        like = trained.get(keys[-1]) if keys else None
        sharding = (
            like.sharding if like is not None and like.shape == leaf.shape else replicated(mesh)
        )
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    moments = jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, trained))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return State(step, params, moments, dict(trained) if config["optim"]["ema"] else {})
