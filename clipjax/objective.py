"""The weighted sum of a run's losses, and everything about a loss that is checked while it is traced."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax import piecewise, registry
from clipjax.errors import UserError, describe, mistakes_in, name_of
from clipjax.losses import KINDS
from clipjax.named import Named

# What the step gives a loss; a setting of the config cannot have these names.
GIVEN = ("outputs", "batch", "samples", "mesh")


class Told(NamedTuple):
    """What losses say beside their value: scalars to log, and new values of frozen parameters by path."""

    metrics: dict[str, jax.Array]
    updates: dict[str, jax.Array]


class _Loss(NamedTuple):
    function: Callable[..., Any]
    weight: piecewise.Piecewise
    settings: dict[str, Any]
    what: str  # "The loss 'x' (package.module:function)"


Losses = Callable[[Mapping[str, Any], Mapping[str, Any], jax.Array], tuple[jax.Array, Told]]


def make_losses(
    config: Mapping[str, Any],
    mesh: Mesh,
    *,
    model: str = "the model",
    makers: Mapping[str, str] | None = None,
) -> Losses:
    """The weighted sum of a config's losses, `(outputs, batch, samples) -> (total, Told)`.

    The total is a float32 scalar. Metrics are named `NAME/loss` and `NAME/...` after the loss that gives them.

    Args:
      config: section `losses`: name -> `kind`, `weight` (a number, or pairs as in clipjax/piecewise.py) and settings.
        See clipjax/losses/__init__.py for what a loss is.
      mesh: of the run.
      model: its name, for messages.
      makers: batch field -> the feature that makes it, for messages.

    Raises:
      UserError: here, an entry without a kind, a weight that is none, or a function that takes no `outputs` and
        `batch`; while it is traced, a name that is not there or a return of another form.
    """
    entries = {name: _entry(name, dict(entry)) for name, entry in config.items()}

    def total(
        outputs: Mapping[str, Any], batch: Mapping[str, Any], samples: jax.Array
    ) -> tuple[jax.Array, Told]:
        result, metrics, updates = jnp.float32(0.0), {}, {}
        for name, loss in entries.items():
            given = {
                "outputs": Named(outputs, _no_output(loss.what, outputs, model)),
                "batch": Named(batch, _no_field(loss.what, batch, makers or {})),
                "samples": samples,
                "mesh": mesh,
            }
            takes = inspect.signature(loss.function).parameters
            given = {k: v for k, v in given.items() if k in takes}
            with mistakes_in(loss.what, loss.function):
                returned = registry.call(loss.function, loss.settings, f"Loss {name!r}", **given)
            value, extra, new = _checked(returned, loss.what)
            result = result + piecewise.at(loss.weight, samples) * value
            metrics |= {f"{name}/loss": value} | {f"{name}/{k}": v for k, v in extra.items()}
            for path in sorted(new.keys() & updates.keys()):
                raise UserError(
                    f"{loss.what} returns an update of {path!r}, which another loss updates too."
                )
            updates |= new
        return result, Told(metrics, updates)

    return total


def _entry(name: str, entry: dict[str, Any]) -> _Loss:
    if "kind" not in entry:
        raise UserError(
            f"The loss {name!r} needs a 'kind', one of {', '.join(KINDS)} or an import path."
        )
    function = registry.lookup(entry["kind"], KINDS, "loss")
    what = f"The loss {name!r} ({name_of(function)})"
    parameters = inspect.signature(function).parameters if callable(function) else {}
    if not {"outputs", "batch"} <= parameters.keys():
        raise UserError(
            f"{what} must be a function of `outputs` and `batch`, but takes "
            f"({', '.join(parameters)}); these two names are fixed."
        )
    settings = {k: v for k, v in entry.items() if k not in ("kind", "weight")}
    for setting in settings:
        if setting in GIVEN:
            raise UserError(
                f"{what} cannot have a setting {setting!r}: the step gives it {', '.join(GIVEN)}."
            )
    weight = piecewise.read(entry.get("weight", 1.0), f"The weight of the loss {name!r}")
    return _Loss(function, weight, settings, what)


def _no_output(what: str, outputs: Mapping[str, Any], model: str) -> Callable[[str], str]:
    return lambda name: (
        f"{what} reads the output {name!r}, which {model} does not give{registry.nearest(name, outputs)}."
    )


def _no_field(
    what: str, batch: Mapping[str, Any], makers: Mapping[str, str]
) -> Callable[[str], str]:
    made = [f"{f} (by {makers[f]!r})" if f in makers else f for f in batch]
    return lambda name: (
        f"{what} reads the batch field {name!r}, which no feature makes; there are {', '.join(made)}; "
        "add a feature that makes it to config.data.features."
    )


def _checked(returned: Any, what: str) -> tuple[jax.Array, Mapping[str, Any], Mapping[str, Any]]:
    """(value, metrics, updates) of what a loss returned."""
    form = "(scalar, metrics) or (scalar, metrics, updates)"
    if not isinstance(returned, tuple | list) or len(returned) not in (2, 3):
        found = type(returned).__name__
        if isinstance(returned, tuple | list):
            found += f" of {len(returned)}"
        raise UserError(f"{what} must return {form}, not a {found}.")
    value, metrics, updates = (*returned, {})[:3]
    if not _is_scalar(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise UserError(
            f"{what} must return a floating-point scalar as its value, not {describe(value)}."
        )
    for part, kind in ((metrics, "metrics"), (updates, "updates")):
        if not isinstance(part, Mapping) or not all(isinstance(k, str) for k in part):
            raise UserError(
                f"{what} must return its {kind} as a dict with names as keys, not {describe(part)}."
            )
    for name, metric in metrics.items():
        if not _is_scalar(metric):
            raise UserError(
                f"{what} returns a metric {name!r} that is no scalar, but {describe(metric)}; "
                "reduce it, for example by its mean."
            )
        if name == "loss":
            raise UserError(f"{what} returns a metric 'loss'; that is the name of its value.")
    return value, metrics, updates


def _is_scalar(value: Any) -> bool:
    try:
        return jnp.shape(value) == () and jnp.issubdtype(jnp.result_type(value), jnp.generic)
    except (TypeError, ValueError):
        return False
