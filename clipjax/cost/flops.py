"""Count the FLOPs of a program.

`count` walks the program that JAX traced: matrix products and convolutions, 2 FLOPs a multiply-add, a scan's body as
often as it runs, and nothing that no result depends on. XLA's own cost analysis counts a scan's body once, and includes
what rematerialisation repeats.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr


def count(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the matrix products and convolutions of `function(*args)`; args may be ShapeDtypeStructs."""
    return of_program(jax.make_jaxpr(function)(*args).jaxpr)


def of_program(jaxpr: core.Jaxpr, results: Sequence[bool] | None = None) -> int:
    """FLOPs of the matrix products and convolutions that the results of a traced program depend on.

    Args:
      jaxpr: the program.
      results: which of them count, in their order; None: all.
    """
    needed, _ = dce_jaxpr(jaxpr, list(results or [True] * len(jaxpr.outvars)))
    return _count(needed)


def used_inputs(jaxpr: core.Jaxpr) -> list[bool]:
    """For each input of a traced program, whether any result depends on it."""
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return used


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += (
                2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contract)
            )
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            numbers = equation.params["dimension_numbers"].rhs_spec  # (out, in, *spatial)
            per_output = math.prod(kernel) // kernel[numbers[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * per_output
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in equation.params["branches"])
        else:
            times = equation.params.get("length", 1) if name == "scan" else 1
            if name == "shard_map":
                times = math.prod(equation.params["mesh"].shape.values())
            total += times * sum(_count(inner) for inner in _inner(equation.params))
    return total


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs inside an equation (of jit, scan, remat, custom derivatives, shard_map, ...)."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        value = params.get(key)
        if isinstance(value, core.ClosedJaxpr):
            return [value.jaxpr]
        if isinstance(value, core.Jaxpr):
            return [value]
    return []
