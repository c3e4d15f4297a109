"""Losses: pure functions of a model's outputs. One file each; its cost stands in its docstring.

A run's losses are named, weighted entries of its config. `kind` is one of `KINDS` or an import path of a function
`(outputs, batch, *, mesh, **settings) -> (scalar, metrics)`.
"""

from clipjax.losses.sigmoid import sigmoid_contrastive
from clipjax.losses.softmax import softmax_contrastive

__all__ = ["KINDS", "sigmoid_contrastive", "softmax_contrastive"]

KINDS = {
    "softmax": "clipjax.losses.softmax:softmax",
    "sigmoid": "clipjax.losses.sigmoid:sigmoid",
}
