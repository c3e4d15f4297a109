"""The training state and the one step that changes it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from clipjax import optim, registry, rules
from clipjax.batch import example_batch
from clipjax.convert.pretrained import copies
from clipjax.errors import UserError
from clipjax.gradient_cache import value_and_grad
from clipjax.losses import KINDS
from clipjax.mesh import parameter_shardings, replicated
from clipjax.models import boxed_params, initialise, make_model, matmul_precision


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


class Parts(NamedTuple):
    """What a config's step is made of: the module, the optimizer, the learning rate by step."""

    model: nn.Module
    optimizer: optax.GradientTransformation
    rate: Callable[[jax.Array], jax.Array]


def make_parts(config: Mapping[str, Any]) -> Parts:
    """The parts of a resolved config; every setting and rule of them is checked, and nothing is allocated."""
    model = make_model(config["model"])
    if "regions" in config["model"] and "boxes" not in example_batch(config):
        raise UserError(
            f"A model of kind {config['model']['kind']!r} trains on regions, and no feature makes 'boxes'; add "
            "config.data.features.regions = {'kind': 'regions', 'count': 4}, or train a 'dual_encoder'."
        )
    rate = optim.make_schedule(config)
    boxed = boxed_params(model, example_batch(config))
    return Parts(model, optim.make_optimizer(config["optim"], nn.unbox(boxed), rate), rate)


def make_losses(
    config: Mapping[str, Any], mesh: Mesh
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """The weighted sum of a config's losses, `(outputs, batch, samples) -> (total, metrics)`.

    A weight is a number, or pairs ((samples, weight), ...) between which it is interpolated.
    """
    entries = {}
    for name, entry in config.items():
        settings = {k: v for k, v in dict(entry).items() if k not in ("kind", "weight")}
        if "kind" not in entry:
            raise UserError(
                f"The loss {name!r} needs a 'kind', one of {', '.join(KINDS)} or an import path."
            )
        entries[name] = (
            registry.lookup(entry["kind"], KINDS, "loss"),
            _weight(entry.get("weight", 1.0), name),
            settings,
        )

    def total(
        outputs: Any, batch: Any, samples: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        result, metrics = jnp.float32(0.0), {}
        for name, (loss, weight, settings) in entries.items():
            if isinstance(weight, np.ndarray):
                weight = jnp.interp(samples, *weight)
            value, extra = registry.call(
                loss, settings, f"Loss {name!r}", outputs=outputs, batch=batch, mesh=mesh
            )
            result = result + weight * value
            metrics |= {f"{name}/loss": value} | {f"{name}/{k}": v for k, v in extra.items()}
        return result, metrics

    return total


def _weight(weight: Any, name: str) -> float | np.ndarray:
    """A checked weight: a number, or float32 [2, n], samples (rising) and weights."""
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        return float(weight)
    try:
        points = np.asarray(weight, np.float32).T if isinstance(weight, tuple | list) else None
    except (TypeError, ValueError):
        points = None
    if points is None or points.ndim != 2 or len(points) != 2 or (np.diff(points[0]) <= 0).any():
        raise UserError(
            f"The weight of the loss {name!r} must be a number, or pairs ((samples, weight), ...) in rising order, "
            f"not {weight!r}."
        )
    return points


def make_step(
    model: nn.Module,
    losses: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    optimizer: optax.GradientTransformation,
    config: Mapping[str, Any],
    rate: Callable[[jax.Array], jax.Array],
) -> Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The step `(state, batch) -> (state, metrics)`, to be jitted with the state donated."""
    settings, batch_size, decay = config["optim"], config["batch_size"], config["optim"]["ema"]

    def step(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        with matmul_precision(config["model"]):
            return update(state, batch)

    def update(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        trained, frozen, _ = optim.split(state.params, settings["freeze"])

        def encode(trained: dict[str, jax.Array], rows: Mapping[str, jax.Array]) -> Any:
            return model.apply({"params": rules.tree(trained | frozen)}, rows, train=True)

        def objective(outputs: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            samples = state.step.astype(jnp.float32) * batch_size
            total, metrics = losses(outputs, batch, samples)
            scalars = {k: outputs[k] for k in ("logit_scale", "logit_bias") if k in outputs}
            return total, metrics | scalars

        (loss, metrics), grads = value_and_grad(
            encode, objective, trained, batch, config["grad_cache"]
        )
        updates, new_optimizer = optimizer.update(grads, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        params = optim.clip_values(rules.tree(trained | frozen), settings["clip_values"])
        flat = rules.paths(params) | frozen  # a frozen value stays, even outside its bounds
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
