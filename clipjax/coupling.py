"""Does what a model makes of a sample depend on the others? Under the gradient cache it must not.

With `config.grad_cache` above 1 a model sees the batch in parts. A hand-made mean over samples would then be a mean
over a part, and the loss another one, without a word. So before the first step the model is run on a few rows, and
again with every other row replaced: the rows that stayed must come out as before.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipjax import rules
from clipjax.errors import UserError
from clipjax.forward import describe_model, forward
from clipjax.mesh import batch_sharding, batch_shards
from clipjax.models import matmul_precision
from clipjax.platform import IN_MICRO_BATCH
from clipjax.prepare import Prepared

# Relative to the largest value of an output. One compiled program gives the same row the same bits; what a sample
# contributes to a mean of a few is far larger than this in any precision.
TOLERANCE = 1e-3


def check_apart(prepared: Prepared, params: Mapping[str, Any]) -> None:
    """Refuses a model that couples samples, if the run uses the gradient cache.

    Outputs with rows: a sample's rows must depend on it alone. Outputs of one shape for any number of rows: they must
    be constant or additive over samples, as a mean is. What couples samples only by parameters that are still zero is
    found too: those count as 0.01 here.

    Args:
      prepared: the run.
      params: tree of its parameters, on the mesh.

    Raises:
      UserError: names the model and the output.

    Cost: one compilation of the model's forward pass on 2 rows a device, run four times.
    """
    config, model = prepared.config, prepared.model
    if config.grad_cache == 1:
        return
    sharding = batch_sharding(prepared.mesh)
    count = 2 * batch_shards(prepared.mesh)
    kept = np.arange(count) % 2 == 0
    a, b = (_rows(prepared.batch, count, seed) for seed in (0, 1))
    mixed = {k: np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, b[k]) for k, x in a.items()}
    others = {k: np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), b[k], x) for k, x in a.items()}

    @jax.jit
    def outputs(params: Any, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        open_ = {
            p: x + 0.01 * ~jnp.any(x) if jnp.issubdtype(x.dtype, jnp.floating) else x
            for p, x in rules.paths(params).items()
        }
        token = IN_MICRO_BATCH.set(True)
        try:
            with matmul_precision(config.model.dtype):
                return forward(model, rules.tree(open_), rows)[0]
        finally:
            IN_MICRO_BATCH.reset(token)

    @jax.jit
    def differences(a: Any, mixed: Any, others: Any, b: Any) -> dict[str, tuple[Any, Any]]:
        found = {}
        for name, x in a.items():
            wide = [jnp.asarray(o[name], jnp.float32) for o in (a, mixed, others, b)]
            if x.shape != wider[name].shape:
                of_sample = [w.reshape(count, -1) for w in wide[:2]]
                apart = (of_sample[0] - of_sample[1])[::2]
            else:
                apart = wide[0] + wide[3] - wide[1] - wide[2]
            found[name] = jnp.max(jnp.abs(apart)), jnp.max(jnp.abs(wide[0]))
        return found

    with jax.set_mesh(prepared.mesh):
        more = {k: jax.ShapeDtypeStruct((2 * count, *x.shape[1:]), x.dtype) for k, x in a.items()}
        wider = jax.eval_shape(outputs, params, more)
        placed = [
            {
                k: jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
                for k, x in r.items()
            }
            for r in (a, mixed, others, b)
        ]
        found = jax.device_get(differences(*(outputs(params, rows) for rows in placed)))
    for name, (apart, largest) in found.items():
        if (
            apart > TOLERANCE * largest
        ):  # not where there is no number: then the first step ends the run
            raise UserError(
                f"{describe_model(model)} gives an output {name!r} of a sample that depends on the other samples, so "
                f"config.grad_cache = {config.grad_cache} would change the loss; compute it in the model's "
                "`whole_batch`, or set config.grad_cache to 1."
            )


def _rows(batch: Mapping[str, Any], count: int, seed: int) -> dict[str, np.ndarray]:
    """Random rows of a batch's fields: any bytes; ids so small that every vocabulary has them; boxes that are none."""
    rng = np.random.default_rng(seed)
    rows = {}
    for name, x in sorted(batch.items()):
        shape = (count, *x.shape[1:])
        if np.issubdtype(x.dtype, np.floating):
            rows[name] = rng.uniform(0.1, 0.9, shape).astype(x.dtype)
        elif x.dtype == np.bool_:
            rows[name] = np.ones(shape, np.bool_)
        else:
            rows[name] = rng.integers(
                0, 4 if np.issubdtype(x.dtype, np.signedinteger) else 256, shape
            ).astype(x.dtype)
    return rows
