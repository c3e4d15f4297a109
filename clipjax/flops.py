"""Count the FLOPs of a program, and know the peaks of devices.

`count` walks the program that JAX traced: matrix products and convolutions, 2 FLOPs a multiply-add, a scan's body as
often as it runs. XLA's own cost analysis counts a scan's body once, and includes what rematerialisation repeats.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# Dense peak in TFLOP/s of one device in bfloat16, by what JAX calls the device. Only devices whose figure has been
# looked up stand here: an H100 of another form (PCIe, NVL) is slower than the SXM one and has no entry.
PEAK_BF16 = {
    "NVIDIA A100": 312.0,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}


def count(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the matrix products and convolutions of `function(*args)`; args may be ShapeDtypeStructs."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def peak(device: jax.Device) -> float | None:
    """FLOP/s of a device in bfloat16, None if not known (a CPU, say)."""
    kind = device.device_kind
    matches = [name for name in PEAK_BF16 if kind.startswith(name)]
    return PEAK_BF16[max(matches, key=len)] * 1e12 if matches else None


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
