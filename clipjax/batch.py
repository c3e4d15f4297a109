"""Shapes and dtypes of a run's batch, as its config says: to compile, plan and count before there is data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clipjax import models
from clipjax.data.captions import make_captions


def example_batch(config: Mapping[str, Any], size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """What the pipeline gives a run's step, the global batch of `size` samples.

    Args:
      config: of the run; `model` and `data` are read.
      size: samples.
    """
    batch = models.example_batch(config["model"], size)
    data, length = config["data"], config["model"]["text"]["length"]
    sources = list(data["sources"].values())
    policy = (sources[0].get("captions") if sources else None) or data["captions"]
    texts = make_captions(policy).count
    if texts > 1:
        batch["text"] = jax.ShapeDtypeStruct((size, texts, length), jnp.int32)
    if data["languages"]:
        batch["language"] = jax.ShapeDtypeStruct((size,), jnp.int32)
    regions = data["regions"]
    if regions["count"]:
        of_region = length if regions["text_length"] is None else regions["text_length"]
        batch |= models.example_regions(size, regions["count"], of_region)
    return batch
