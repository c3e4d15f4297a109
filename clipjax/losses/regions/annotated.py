"""The share of a batch's images that have a region: CLOC's lambda without its factor (Chen et al. 2025)."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from clipjax.errors import UserError


def annotated(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    name: str,
    needs: Iterable[str],
) -> jax.Array:
    """That share, a float32 scalar, for the loss `name` that needs these outputs.

    Raises:
      UserError: a batch without regions, or a model without the outputs.
    """
    for field in ("region_mask", "boxes"):
        if field not in batch:
            raise UserError(
                f"The loss {name!r} needs {field!r} in the batch; set config.data.features.regions to "
                "{'kind': 'regions', 'count': 4} and read a source that has regions."
            )
    for output in needs:
        if output in outputs:
            continue
        head = " with config.model.regions.kind = 'prompter'" if output == "grounded_boxes" else ""
        raise UserError(
            f"The loss {name!r} needs the model's output {output!r}; set "
            f"config.model.kind = 'region_dual_encoder'{head}."
        )
    return jnp.mean(jnp.any(batch["region_mask"] != 0, axis=1), dtype=jnp.float32)
