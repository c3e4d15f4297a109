"""Losses: pure functions of a model's outputs. One file each; its cost stands in its docstring.

A run's losses are named, weighted entries of its config: `config.losses.NAME = {"kind": ..., "weight": ..., settings}`.
`kind` is one of `KINDS` or the import path of a function

    (outputs, batch, *, [samples,] [mesh,] **settings) -> (scalar, metrics) or (scalar, metrics, updates)

  outputs    read-only mapping: what the model gives for the whole global batch (clipjax/fields.py), with gradients
  batch      read-only mapping: the global batch's fields
  samples    float32 scalar, the samples seen before this step; only for a function with an argument of this name
  mesh       the run's `jax.sharding.Mesh`; likewise
  settings   from the config, checked against the function's signature
  scalar     floating-point, shape []
  metrics    name -> scalar; logged as `NAME/name` beside `NAME/loss`
  updates    path -> new value of a frozen parameter, of the same shape and dtype: a queue, a running mean. It has no
             gradient, and is set after the optimizer (clipjax/updates.py), so the next step sees it

These names are fixed: `outputs` and `batch` are given by keyword. A missing output or field, or a return of another
form, is one sentence that names `module:function`, before the run starts. A loss draws randomness, if it must, from
`batch["sample_seed"]` (uint32 [B]), so that it does not depend on the mesh.
"""

from clipjax.losses.classes import class_cross_entropy
from clipjax.losses.distill import similarity_distill
from clipjax.losses.regions.contrastive import region_contrastive
from clipjax.losses.regions.grounding import grounding
from clipjax.losses.sigmoid import sigmoid_contrastive
from clipjax.losses.softmax import softmax_contrastive

__all__ = [
    "KINDS",
    "class_cross_entropy",
    "grounding",
    "region_contrastive",
    "sigmoid_contrastive",
    "similarity_distill",
    "softmax_contrastive",
]

KINDS = {
    "softmax": "clipjax.losses.softmax:softmax",
    "sigmoid": "clipjax.losses.sigmoid:sigmoid",
    "class_cross_entropy": "clipjax.losses.classes:classify",
    "similarity_distill": "clipjax.losses.distill:distill_similarities",
    "region_softmax": "clipjax.losses.regions.contrastive:region_softmax",
    "grounding": "clipjax.losses.regions.grounding:region_grounding",
}
