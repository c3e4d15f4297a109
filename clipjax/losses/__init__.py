"""Losses: pure functions of a model's outputs. One file each; its cost stands in its docstring.

A run's losses are named, weighted entries of its config. `kind` is one of `KINDS` or an import path of a function
`(outputs, batch, *, mesh, **settings) -> (scalar, metrics)`.
"""

from clipjax.losses.distill import similarity_distill
from clipjax.losses.regions.contrastive import region_contrastive
from clipjax.losses.regions.grounding import grounding
from clipjax.losses.sigmoid import sigmoid_contrastive
from clipjax.losses.softmax import softmax_contrastive

__all__ = [
    "KINDS",
    "grounding",
    "region_contrastive",
    "sigmoid_contrastive",
    "similarity_distill",
    "softmax_contrastive",
]

KINDS = {
    "softmax": "clipjax.losses.softmax:softmax",
    "sigmoid": "clipjax.losses.sigmoid:sigmoid",
    "similarity_distill": "clipjax.losses.distill:distill_similarities",
    "region_softmax": "clipjax.losses.regions.contrastive:region_softmax",
    "grounding": "clipjax.losses.regions.grounding:region_grounding",
}
