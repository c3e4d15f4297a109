"""Read a compiled program's text: its collectives, its matrix products, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once and says nothing of collectives. Here every instruction counts as
often as the loops around it go round. The text is what `jax.jit(f).lower(...).compile().as_text()` gives, for a CPU, a
GPU or a TPU, and describes one device's program.
"""

from clipjax.cost.hlo.collectives import KINDS, Collective, axes_of, collectives
from clipjax.cost.hlo.flops import matmul_flops
from clipjax.cost.hlo.groups import replica_groups
from clipjax.cost.hlo.traffic import memory_traffic

__all__ = [
    "KINDS",
    "Collective",
    "axes_of",
    "collectives",
    "matmul_flops",
    "memory_traffic",
    "replica_groups",
]
