"""The gradient of a loss over a huge batch, with the memory of a small one (GradCache, Gao et al. 2021).

Contrastive losses need the outputs of the whole batch at once, but the towers do not: they are run on one micro-batch
after another, only their outputs are kept, the losses see all of them, and the backward pass runs each micro-batch once
more. Since a model's randomness comes from the batch (`sample_seed`), the second run repeats the first.

It costs one more forward pass of the model, a third of a step. It keeps the activations of one micro-batch, and of the
whole batch the outputs that a loss reads with their gradients; the compiler drops the others. Where parameters are
split or the batch is, gradients are reduced over devices, and split parameters gathered, once a micro-batch.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.errors import UserError
from clipjax.mesh import batch_shards, check_batch, constrain
from clipjax.platform import IN_MICRO_BATCH

Arrays = Mapping[str, jax.Array]


def value_and_grad(
    encode: Callable[[Any, Arrays], Arrays],
    losses: Callable[[Any, Arrays], tuple[jax.Array, Any]],
    params: Any,
    batch: Arrays,
    chunks: int = 1,
) -> tuple[tuple[jax.Array, Any], Any]:
    """Value, rest and gradients of `losses(params, encode(params, batch))`; `chunks` changes them by rounding only.

    The batch may be split over the ambient mesh (`jax.set_mesh`): a micro-batch takes its rows from all devices alike,
    so none travels, and the losses see the rows in the batch's order.

    Args:
      encode: `(params, rows) -> outputs`, for any number of rows. An output has a row a sample (or as many for each),
        and then a sample's rows depend on that sample alone; or a shape that does not depend on their number, and then
        it is the same for all samples, or a mean over them.
      losses: `(params, outputs) -> (scalar, rest)`, with the outputs of all rows. It may use parameters too: what
        needs the whole batch and is cheap enough to run on it at once.
      params: tree of arrays. Their gradients are summed in float32, or in a wider dtype if they have one.
      batch: arrays [B, ...].
      chunks: micro-batches; 1 is plain differentiation.

    Returns:
      ((scalar, rest), gradients), as from `jax.value_and_grad(..., has_aux=True)`. While `encode` is traced for
      a micro-batch, `clipjax.platform.IN_MICRO_BATCH` is True.

    Raises:
      UserError: a batch that does not divide into such micro-batches, or an output of another form.
    """
    if chunks == 1:
        return jax.value_and_grad(lambda p: losses(p, encode(p, batch)), has_aux=True)(params)

    mesh = jax.sharding.get_abstract_mesh()
    check_batch(len(jax.tree.leaves(batch)[0]), mesh, chunks)
    shards = batch_shards(mesh)
    micro_batches = {k: _split(x, chunks, shards) for k, x in batch.items()}
    encode = _in_micro_batch(encode)
    means = _means(encode, params, batch, micro_batches)

    # The loop keeps `rows` and outputs only; inside a loop XLA cannot merge the second run with the first.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run(wide: Any, rows: Arrays) -> Arrays:
        return encode(jax.tree.map(lambda w, p: w.astype(p.dtype), wide, params), rows)

    def objective(params: Any) -> tuple[jax.Array, Any]:
        wide = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)

        def step(totals: Arrays, rows: Arrays) -> tuple[Arrays, Arrays]:
            outputs = run(wide, rows)
            each = {k: x for k, x in outputs.items() if k not in totals}
            return {k: total + outputs[k] for k, total in totals.items()}, each

        zeros = {
            k: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for k, x in means.items()
        }
        totals, each = jax.lax.scan(step, zeros, micro_batches)
        outputs = {k: (total / chunks).astype(means[k].dtype) for k, total in totals.items()}
        return losses(params, outputs | {k: _join(x, shards) for k, x in each.items()})

    return jax.value_and_grad(objective, has_aux=True)(params)


def _in_micro_batch(encode: Callable[[Any, Arrays], Arrays]) -> Callable[[Any, Arrays], Arrays]:
    """`encode`, which can see while it is traced that its rows are not the whole batch."""

    def encode_rows(params: Any, rows: Arrays) -> Arrays:
        token = IN_MICRO_BATCH.set(True)
        try:
            return encode(params, rows)
        finally:
            IN_MICRO_BATCH.reset(token)

    return encode_rows


def _means(encode: Callable, params: Any, batch: Arrays, micro_batches: Arrays) -> Arrays:
    """Shapes of the outputs that do not depend on the number of rows: means over samples, or the same for all."""
    rows = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in micro_batches.items()}
    whole = jax.eval_shape(encode, params, batch)
    part = jax.eval_shape(encode, params, rows)
    chunks = len(jax.tree.leaves(micro_batches)[0])
    means = {k: x for k, x in whole.items() if x.shape == part[k].shape}
    for name, x in whole.items():
        if name not in means and (
            x.shape[1:] != part[name].shape[1:] or not x.ndim or len(x) != chunks * len(part[name])
        ):
            raise UserError(
                f"The output {name!r} has shape {list(x.shape)} for the whole batch and {list(part[name].shape)} for a "
                f"micro-batch, so config.grad_cache = {chunks} cannot join it; give it a row a sample, or one shape."
            )
        if name in means and not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(
                f"The output {name!r} has no row a sample and is {x.dtype}, so config.grad_cache = {chunks} cannot "
                "average it; make it a float that is a mean over samples."
            )
    return means


def _split(x: jax.Array, chunks: int, shards: int) -> jax.Array:
    """[B, ...] -> [chunks, B / chunks, ...]; of each device's rows, every micro-batch takes the same number."""
    pieces = x.reshape(shards, chunks, -1, *x.shape[1:]).swapaxes(0, 1)
    pieces = pieces.reshape(chunks, -1, *x.shape[1:])
    return constrain(pieces, None, "batch", *[None] * (x.ndim - 1))


def _join(pieces: jax.Array, shards: int) -> jax.Array:
    """The inverse of `_split`."""
    chunks, _, *rest = pieces.shape
    x = pieces.reshape(chunks, shards, -1, *rest).swapaxes(0, 1).reshape(-1, *rest)
    return constrain(x, "batch", *[None] * len(rest))
