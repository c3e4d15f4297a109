"""Optimizers, schedules, and who is trained how: (regex, value) lists over parameter paths, first match wins.

Frozen parameters never meet the optimizer: they get no gradient and no state. LiT (Zhai et al. 2022) is nothing but
`freeze = (("image/.*", True), (".*", False))`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipjax import piecewise, registry, rules
from clipjax.errors import UserError, describe, mistakes_in, name_of
from clipjax.registry import wanted

Flat = dict[str, Any]

SCHEDULES = ("cosine", "constant", "rsqrt")
OPTIMIZERS = {
    "adamw": "clipjax.optim:adamw",
    "adafactor": "clipjax.optim:adafactor",
    "lion": "clipjax.optim:lion",
    "muon": "clipjax.optim:muon",
    "sgd": "clipjax.optim:sgd",
}


def schedule(
    kind: str, *, peak: float, total: int, warmup: int, batch_size: int, final: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """Learning rate as a function of the step, written in samples.

    Linear warm-up over `warmup` samples, then "cosine" to `final * peak` at `total` samples, "constant", or "rsqrt"
    (reciprocal square root, peak * sqrt(warmup / samples), as in Zhai et al. 2022). `kind` may also be the import path
    of a function `(*, peak, total, warmup, batch_size, final)` (samples but for `peak` and `final`) that returns a
    function from the step (an int32 scalar array) to a float scalar.

    Raises:
      UserError: an unknown kind, or a warm-up longer than the run.
    """
    if warmup > total:
        raise UserError(
            f"config.optim.warmup ({warmup} samples) is longer than the run ({total} samples)."
        )
    if kind not in SCHEDULES:
        make = registry.lookup(kind, dict.fromkeys(SCHEDULES, ""), "schedule")
        what = f"The schedule {kind!r}"
        settings = dict(peak=peak, total=total, warmup=warmup, batch_size=batch_size, final=final)
        with mistakes_in(what, make):
            rate = registry.call(make, {}, what, **settings)
            shape = jax.eval_shape(rate, jax.ShapeDtypeStruct((), jnp.int32))
        if (
            not hasattr(shape, "shape")
            or shape.shape
            or not jnp.issubdtype(shape.dtype, jnp.floating)
        ):
            raise UserError(f"{what} must give a float scalar for a step, not {describe(shape)}.")
        return rate

    def rate(step: jax.Array) -> jax.Array:
        # Float32 counts steps exactly to 16 million; ratios are formed in steps, not samples, for that reason.
        step = jnp.asarray(step, jnp.float32)
        ramp_steps, total_steps = warmup / batch_size, total / batch_size
        # Step 0 already moves: the first update uses 1 / ramp of the peak.
        ramp = jnp.minimum(1.0, (step + 1) / max(ramp_steps, 1.0))
        if kind == "constant":
            decay = 1.0
        elif kind == "rsqrt":
            start = max(ramp_steps, 1.0)
            decay = jnp.sqrt(start / jnp.maximum(step + 1, start))
        else:
            done = jnp.clip((step - ramp_steps) / max(total_steps - ramp_steps, 1.0), 0.0, 1.0)
            decay = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return peak * ramp * decay

    return rate


def make_schedule(config: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """The learning rate by step of a resolved config."""
    section = config["optim"]
    return schedule(
        section["schedule"],
        peak=section["lr"],
        total=config["total_samples"],
        warmup=section["warmup"],
        batch_size=config["batch_size"],
        final=section["final_lr"],
    )


def split(
    params: Mapping[str, Any], freeze: tuple[tuple[str, bool], ...]
) -> tuple[Flat, Flat, Flat]:
    """Flat parameters, parted into those that train and those that do not, and the trained ones' masks.

    A stack of which only some layers are frozen trains as a whole with a mask (1 trained, 0 frozen).
    """
    frozen_by_path = rules.match(freeze, params, "optim.freeze")
    flat = rules.paths(params)
    mask = {p: 1.0 - np.asarray(v, np.float32) for p, v in frozen_by_path.items()}
    trained = {p: leaf for p, leaf in flat.items() if mask[p].any()}
    if not trained:
        raise UserError("config.optim.freeze freezes every parameter; nothing would train.")
    frozen = {p: leaf for p, leaf in flat.items() if p not in trained}
    return trained, frozen, {p: mask[p] for p in trained}


def make_optimizer(
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    rate: Callable[[jax.Array], jax.Array],
    batch_size: int = 1,
) -> optax.GradientTransformation:
    """The optimizer of `config.optim` over the flat dict of trained parameters.

    The order is: clip by global norm, precondition, add decoupled weight decay, scale by each parameter's multiplier
    and by the learning rate. What `config.optim.name` says is the second of these alone: a name of `OPTIMIZERS`, or the
    import path of a function `(config, trained, **settings) -> optax.GradientTransformation`, where `config` is this
    section, `trained` is path -> array or shape, and `settings` are `config.optim.settings`. It turns gradients into
    updates that are to be subtracted, with no learning rate and no weight decay in them.

    Args:
      config: section `optim`.
      params: tree of all parameters (arrays or shapes); rules are checked against it.
      rate: step -> learning rate.
      batch_size: samples a step, for multipliers that change.

    Raises:
      UserError: an unknown optimizer or setting of it, rules that fit nothing, or a parameter that cannot train.
    """
    name = config["name"]
    precondition = registry.lookup(name, OPTIMIZERS, "optimizer")
    for field in ("b1", "b2", "ema"):
        if not 0 <= config[field] < 1:
            raise UserError(
                f"config.optim.{field} must be at least 0 and below 1, not {config[field]!r}."
            )
    trained, _, mask = split(params, config["freeze"])
    for path, leaf in trained.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"The parameter {path!r} is {describe(leaf)}, which cannot train; freeze it: put "
                f"({re.escape(path)!r}, True) before the other rules of config.optim.freeze."
            )
    decay = rules.match(config["decay_rules"], params, "optim.decay_rules")
    decay = {p: config["weight_decay"] * decay[p] for p in trained}
    clip = config["clip_norm"]
    if clip is not None and (wanted(0.0, clip) or clip <= 0):
        raise UserError(f"config.optim.clip_norm must be a number above 0, or None, not {clip!r}.")
    what = f"The optimizer {name!r}"
    with mistakes_in(f"{what} ({name_of(precondition)})", precondition):
        made = registry.call(
            precondition, dict(config["settings"]), what, config=config, trained=trained
        )
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(
            f"{what} must be a function that returns an optax.GradientTransformation, not {describe(made)}."
        )
    return optax.chain(
        _multiply(mask),
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        made,
        _add_decay(decay),
        _multipliers(config["lr_multipliers"], params, mask, batch_size),
        optax.scale_by_learning_rate(rate),
    )


def adamw(config: Mapping[str, Any], trained: Flat) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019, with `b1`, `b2`, `eps`."""
    del trained
    return optax.scale_by_adam(b1=config["b1"], b2=config["b2"], eps=config["eps"])


def sgd(
    config: Mapping[str, Any],
    trained: Flat,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    l2: float = 0.0,
) -> optax.GradientTransformation:
    """Gradient descent: the sum of past gradients, each weighted by `momentum` a step; 0 is the gradient alone.

    `l2` times the parameter is added to its gradient, so that it takes part in the sum: the `weight_decay` of PyTorch's
    SGD. This section's own `weight_decay` is added to the sum.
    """
    del config, trained
    if not 0 <= momentum < 1:
        raise UserError(
            f"config.optim.settings.momentum must be at least 0 and below 1, not {momentum!r}."
        )
    if wanted(0.0, l2) or l2 < 0:
        raise UserError(f"config.optim.settings.l2 must be a number of at least 0, not {l2!r}.")
    add = optax.add_decayed_weights(l2) if l2 else optax.identity()
    return optax.chain(add, optax.trace(momentum, nesterov) if momentum else optax.identity())


def lion(config: Mapping[str, Any], trained: Flat) -> optax.GradientTransformation:
    """Chen et al. 2023, "Symbolic discovery of optimization algorithms"."""
    del trained
    return optax.scale_by_lion(b1=config["b1"], b2=config["b2"])


def adafactor(config: Mapping[str, Any], trained: Flat) -> optax.GradientTransformation:
    """Shazeer & Stern 2018 as Zhai et al. 2022 (Scaling ViT, section 3.4) use it: factored second moment with its
    decay capped at b2, update clipping, first moment in bfloat16, no scaling by parameter size.
    """
    del trained

    def memory(step: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(config["b2"], 1.0 - jnp.float32(step + 1) ** -exponent)

    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=0.8, epsilon=1e-30, min_dim_size_to_factor=32, decay_rate_fn=memory
        ),
        optax.clip_by_block_rms(1.0),
        optax.ema(config["b1"], debias=False, accumulator_dtype=jnp.bfloat16),
    )


def muon(config: Mapping[str, Any], trained: Flat) -> optax.GradientTransformation:
    """Jordan et al. 2024: orthogonalised momentum for the blocks' matrices, Adam (with Nesterov) for all else.

    Scaled to AdamW's RMS (Liu et al. 2025, section 2.2), so that the same learning rates and decays serve. Each layer,
    and each of query, key and value, is orthogonalised by itself.
    """

    def axes(path: str, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if rules.STACKED not in path.split("/") or not path.endswith("kernel"):
            return None
        if path.endswith("qkv_kernel"):  # [layers, W, 3, heads, d]
            return optax.contrib.MuonDimensionNumbers(1, (3, 4))
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return optax.contrib.muon(
        learning_rate=-1.0,  # the sign is undone: the chain above applies the real learning rate
        beta=0.95,
        adam_b1=config["b1"],
        adam_b2=config["b2"],
        eps=config["eps"],
        consistent_rms=0.2,
        muon_weight_dimension_numbers={p: axes(p, leaf) for p, leaf in trained.items()},
    )


def _is_one(value: Any) -> bool:
    return np.ndim(value) == 0 and float(value) == 1.0


def _multiply(factors: Flat) -> optax.GradientTransformation:
    """Multiplies each update by its factor, a number or an array that broadcasts."""
    return optax.stateless(
        lambda updates, _: {
            p: u if _is_one(factors[p]) else (u * factors[p]).astype(u.dtype)
            for p, u in updates.items()
        }
    )


def _multipliers(
    rules_: Any, params: Mapping[str, Any], mask: Flat, batch_size: int
) -> optax.GradientTransformation:
    """Multiplies each update by its learning-rate multiplier and its mask.

    Where all multipliers are numbers there is no state. Else the state counts steps, and a multiplier is that of the
    samples seen before the step.
    """
    if not any(len(rule) == 2 and piecewise.is_pairs(rule[1]) for rule in rules_):
        multiplier = rules.match(rules_, params, "optim.lr_multipliers")
        return _multiply({p: multiplier[p] * mask[p] for p in mask})
    values = [
        piecewise.read(value, f"A multiplier of config.optim.lr_multipliers ({pattern!r})")
        for pattern, value in rules_
    ]
    places = [(pattern, float(place)) for place, (pattern, _) in enumerate(rules_)]
    chosen = rules.match(places, params, "optim.lr_multipliers")

    def update(updates: Flat, state: optax.ScaleByScheduleState, params: Any = None) -> Any:
        del params
        samples = state.count.astype(jnp.float32) * batch_size
        now = jnp.stack([jnp.float32(piecewise.at(value, samples)) for value in values])
        scaled = {
            p: (u * (now[np.asarray(chosen[p], np.int32)] * mask[p])).astype(u.dtype)
            for p, u in updates.items()
        }
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(
        lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update
    )


def _add_decay(decay: Flat) -> optax.GradientTransformation:
    """Adds decay * parameter, with a rate for each parameter."""
    return optax.stateless(
        lambda updates, params: {
            p: u
            if np.ndim(decay[p]) == 0 and decay[p] == 0
            else u + (decay[p] * params[p]).astype(u.dtype)
            for p, u in updates.items()
        }
    )


def clip_values(
    params: Mapping[str, Any], rules_: tuple[tuple[str, float, float], ...]
) -> dict[str, Any]:
    """Keeps parameters inside [low, high] after an update: OpenAI's CLIP holds the log logit scale in [0, ln 100].

    Clipping in the forward pass instead would cut the gradient and leave the scale stuck at the edge.
    """
    for rule in rules_:
        if isinstance(rule, str) or len(rule) != 3:
            raise UserError(
                "config.optim.clip_values must be a tuple of (pattern, low, high) triples, "
                f"but has {rule!r} in it."
            )
    bounds = rules.match(
        [*((r, (lo, hi)) for r, lo, hi in rules_), (".*", None)], params, "optim.clip_values"
    )
    flat = rules.paths(params)
    return rules.tree(
        {p: x if bounds[p] is None else jnp.clip(x, *bounds[p]) for p, x in flat.items()}
    )
