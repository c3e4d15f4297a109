"""The model as the step calls it: outputs and updates, with what a forker may get wrong told in one sentence."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import jax
from flax import linen as nn

from clipjax import rules
from clipjax.errors import UserError, describe, mistakes_in, name_of
from clipjax.named import Named
from clipjax.registry import nearest

UPDATES = "updates"  # a reserved output, and the Flax collection with the same meaning

Arrays = dict[str, Any]


def forward(
    model: nn.Module, params: Mapping[str, Any], batch: Mapping[str, Any]
) -> tuple[Arrays, Arrays]:
    """(outputs, updates) of `model(batch, train=True)`.

    Updates are what the model gives under the reserved output `updates` (path -> value), together with what its modules
    write to the Flax collection "updates" under the parameters' own names.

    Args:
      model: the module.
      params: tree of its parameters.
      batch: its fields; what the model asks for and is not there is named.

    Raises:
      UserError: the model fails, makes a parameter only now, or returns anything but a dict of arrays.
    """
    what = describe_model(model)
    return _apply(model, params, lambda m: m(Named(batch, _no_field(what, batch)), train=True))


def join(
    model: nn.Module, params: Mapping[str, Any], outputs: Arrays, batch: Mapping[str, Any]
) -> tuple[Arrays, Arrays]:
    """(outputs, updates) of `model.whole_batch(outputs, batch, train=True)`, which sees the joined outputs.

    Args and errors as for `forward`; `outputs` are those of the whole batch. What it returns is what losses see.
    """
    what = describe_model(model)
    missing = lambda name: (  # noqa: E731
        f"{what} reads the output {name!r} in whole_batch, and has not given it{nearest(name, outputs)}."
    )
    fields = Named(batch, _no_field(what, batch))
    return _apply(
        model, params, lambda m: m.whole_batch(Named(outputs, missing), fields, train=True)
    )


def final_outputs(model: nn.Module, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Arrays:
    """The outputs that losses see, of a batch in one piece."""
    outputs, _ = forward(model, params, batch)
    return join(model, params, outputs, batch)[0] if has_whole_batch(model) else outputs


def has_whole_batch(model: nn.Module) -> bool:
    """Whether the model has a method for the joined outputs of the whole batch."""
    return callable(getattr(type(model), "whole_batch", None))


def describe_model(model: nn.Module) -> str:
    """The beginning of a sentence about a model."""
    return f"The model {name_of(model)}"


def _no_field(what: str, batch: Mapping[str, Any]) -> Callable[[str], str]:
    return lambda name: (
        f"{what} reads the batch field {name!r}, which no feature makes{nearest(name, batch)}; "
        "add a feature that makes it to config.data.features."
    )


def _apply(
    model: nn.Module, params: Mapping[str, Any], method: Callable[[nn.Module], Any]
) -> tuple[Arrays, Arrays]:
    what = describe_model(model)
    with mistakes_in(what, model):
        try:
            returned, written = model.apply({"params": params}, method=method, mutable=[UPDATES])
        except flax.errors.ScopeParamNotFoundError as error:
            reason = " ".join(str(error).split(" (http")[0].split()).rstrip(".")
            raise UserError(
                f"{what} makes a parameter in training that it did not make at the start ({reason}); "
                "make it in every call, whatever `train` is."
            ) from error
    if not isinstance(returned, Mapping):
        raise UserError(f"{what} must return a dict of outputs, not {describe(returned)}.")
    outputs = dict(returned)
    updates = outputs.pop(UPDATES, {})
    if not isinstance(updates, Mapping):
        raise UserError(
            f"{what} must give `updates` as a dict, path -> value, not {describe(updates)}."
        )
    for name, value in outputs.items():
        if not isinstance(name, str) or not isinstance(value, jax.Array):
            raise UserError(
                f"{what} gives the output {name!r} as {describe(value)}; outputs are arrays by name."
            )
    return outputs, dict(updates) | rules.paths(written.get(UPDATES, {}))
