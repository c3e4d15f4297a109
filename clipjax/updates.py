"""New values of frozen parameters: what models, losses and refreshes return, and targets that follow their sources.

What has no gradient (running means, queues, a momentum copy) is a parameter under a freeze rule. In a step its new
value is set after the optimizer and after `optim.clip_values`: first the updates, then what follows.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clipjax import piecewise, rules
from clipjax.errors import UserError, describe
from clipjax.registry import nearest

Flat = Mapping[str, Any]


def check(updates: Flat, frozen: Flat, trained: Flat, who: str) -> None:
    """Refuses an update that does not fit.

    Args:
      updates: path -> new value.
      frozen, trained: all parameters by path, or their shapes.
      who: returns them, for the message: "A loss", "The refresh 'x' (package.module:function)".

    Raises:
      UserError: a path that is no parameter, one that trains, or a value of another shape or dtype.
    """
    for path, value in updates.items():
        if path in trained:
            raise UserError(
                f"{who} returns an update of {path!r}, which trains; freeze it: put "
                f"({re.escape(path)!r}, True) before the other rules of config.optim.freeze."
            )
        if path not in frozen:
            raise UserError(
                f"{who} returns an update of {path!r}, which is no parameter"
                f"{nearest(path, list(frozen))}."
            )
        old = frozen[path]
        if not hasattr(value, "shape") or (value.shape, value.dtype) != (old.shape, old.dtype):
            raise UserError(
                f"{who} returns an update of {path!r} that is {describe(value)}, but the parameter is {describe(old)}."
            )


def pinned(updates: Flat, shardings: Flat) -> dict[str, jax.Array]:
    """Updates laid out over the mesh as their parameters are, so that a step's result has the layout it began with."""
    constrain = jax.lax.with_sharding_constraint
    return {p: constrain(x, shardings[p]) if p in shardings else x for p, x in updates.items()}


class Follow(NamedTuple):
    """The path of the parameter that is followed, and how much of the old value a step keeps."""

    source: str
    decay: piecewise.Piecewise


def read_follow(rules_: Any, params: Mapping[str, Any], trained: Flat) -> dict[str, Follow]:
    r"""`config.optim.follow` against the model's parameters: target path -> what it follows.

    Args:
      rules_: ((target, source, decay), ...): a regular expression that must match all of a frozen parameter's path, a
        replacement for it (`\1` is the first group) that gives the path of its source, and a number in [0, 1] or pairs
        ((samples, decay), ...). Of several rules the first that matches a target counts.
      params: tree of arrays or shapes.
      trained: those that train, by path.

    Raises:
      UserError: not such triples, a pattern that matches nothing, a target that trains or is no float, a source that is
        not there or has another shape, or a decay outside [0, 1].
    """
    flat, found = rules.paths(params), {}
    for rule in rules_:
        if not isinstance(rule, tuple | list) or len(rule) != 3:
            raise UserError(
                "config.optim.follow must be a tuple of (target, source, decay) triples, "
                f"but has {rule!r} in it."
            )
        target, source, decay = rule
        if not isinstance(target, str) or not isinstance(source, str):
            raise UserError(
                f"config.optim.follow needs strings for a target and its source, not {rule!r}."
            )
        amount = piecewise.read(decay, f"The decay of config.optim.follow for {target!r}")
        values = np.asarray(amount if isinstance(amount, float) else amount[1])
        if ((values < 0) | (values > 1)).any():
            raise UserError(
                f"The decay of config.optim.follow for {target!r} must be from 0 to 1, not {decay!r}."
            )
        try:
            matches = {path: re.fullmatch(target, path) for path in flat}
            matches = {path: m.expand(source) for path, m in matches.items() if m}
        except (re.error, IndexError) as error:
            raise UserError(
                "config.optim.follow has a rule that is not a valid regular expression with its replacement, "
                f"{rule!r}: {error}."
            ) from error
        if not matches:
            raise UserError(
                f"config.optim.follow has a target that matches no parameter, {target!r}"
                f"{nearest(target, list(flat))}."
            )
        for path, of in matches.items():
            _check_pair(path, of, flat, trained)
            found.setdefault(path, Follow(of, amount))
    return found


def _check_pair(path: str, source: str, flat: Flat, trained: Flat) -> None:
    if source not in flat:
        raise UserError(
            f"config.optim.follow lets {path!r} follow {source!r}, which is no parameter{nearest(source, list(flat))}."
        )
    if source == path:
        raise UserError(f"config.optim.follow lets {path!r} follow itself.")
    if path in trained:
        raise UserError(
            f"config.optim.follow lets {path!r} follow {source!r}, but it trains; freeze it: put "
            f"({re.escape(path)!r}, True) before the other rules of config.optim.freeze."
        )
    if flat[path].shape != flat[source].shape:
        raise UserError(
            f"config.optim.follow lets {path!r} follow {source!r}, but they are {describe(flat[path])} and "
            f"{describe(flat[source])}."
        )
    if not jnp.issubdtype(flat[path].dtype, jnp.floating):
        raise UserError(
            f"config.optim.follow lets {path!r} follow {source!r}, but it is {describe(flat[path])}; only floats can."
        )


def followed(
    follow: Mapping[str, Follow], flat: Flat, updates: Flat, samples: jax.Array
) -> dict[str, jax.Array]:
    """New values of all targets: decay * old + (1 - decay) * source, in float32, where sources are the step's new ones.

    Args:
      follow: from `read_follow`.
      flat: all parameters by path, after the optimizer and the updates; a target that is another's source counts as
        it was before.
      updates: what the step sets otherwise; a target cannot be among them.
      samples: seen before the step, float32 scalar.

    Raises:
      UserError: a target that has an update too.
    """
    for path in sorted(follow.keys() & updates.keys()):
        raise UserError(
            f"{path!r} follows {follow[path].source!r} by config.optim.follow and has an update too; "
            "narrow the target's pattern so that it leaves that parameter out."
        )

    def new(path: str, source: str, decay: piecewise.Piecewise) -> jax.Array:
        old, latest = flat[path], flat[source]
        if isinstance(decay, float) and decay == 0:
            return latest.astype(old.dtype)
        amount = piecewise.at(decay, samples)
        wide = jnp.promote_types(old.dtype, jnp.float32)
        mean = amount * old.astype(wide) + (1.0 - amount) * latest.astype(wide)
        return mean.astype(old.dtype)

    return {path: new(path, *rule) for path, rule in follow.items()}
