"""FLOPs of a compiled program's matrix products and convolutions."""

import math
import re

import numpy as np

from clipjax.cost.hlo.program import Instruction, Program, dimensions, integers, operand_names


def matmul_flops(text: str) -> int:
    """FLOPs of one device's matrix products and convolutions, a multiply-add as two."""
    program = Program(text)
    return sum(times * _flops(i, shapes) for i, shapes, times, _ in program.running())


def _flops(i: Instruction, shapes: dict[str, str]) -> int:
    if i.opcode == "dot":
        contracted = integers(re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)[1])
        return _product(i, shapes, contracted)
    if i.opcode == "convolution":
        return _convolution(i, shapes)
    if i.opcode == "custom-call" and re.search(
        r'custom_call_target="__(cublas|onednn)\$', i.attributes
    ):
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.attributes)
        if contracted:
            return _product(i, shapes, integers(contracted[1].replace('"', "")))
    return 0


def _product(i: Instruction, shapes: dict[str, str], contracted: list[int]) -> int:
    left = dimensions(shapes[operand_names(i)[0]])
    return 2 * math.prod(dimensions(i.shape)) * math.prod(left[d] for d in contracted)


def _convolution(i: Instruction, shapes: dict[str, str]) -> int:
    """Only taps that meet an element count: a TPU writes batched products as convolutions of mostly padding."""
    left, right, _ = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes).groups()
    image, kernel = (dimensions(shapes[n]) for n in operand_names(i)[:2])
    result = dimensions(i.shape)
    labels = re.search(r"dim_labels=\w+->(\w+)", i.attributes)[1]
    groups = int((re.search(r"batch_group_count=(\d+)", i.attributes) or [0, 1])[1])
    window = re.search(r"window=\{([^}]*)\}", i.attributes)
    window = dict(p.split("=") for p in window[1].split()) if window else {}
    taps = 1
    for d, label in enumerate(sorted(c for c in left if c.isdigit())):
        pick = lambda name, default, d=d: window.get(name, "x".join([default] * 9)).split("x")[d]  # noqa: E731
        stride, spread, holes = (int(pick(n, "1")) for n in ("stride", "lhs_dilate", "rhs_dilate"))
        before = int(pick("pad", "0_0").split("_")[0])
        place = (
            np.arange(result[labels.index(label)])[:, None] * stride
            + np.arange(kernel[right.index(label)]) * holes
            - before
        )
        size = (image[left.index(label)] - 1) * spread + 1
        taps *= int(((place >= 0) & (place < size) & (place % spread == 0)).sum())
    features = kernel[right.index("i")] * kernel[right.index("o")]
    return 2 * taps * features * (image[left.index("b")] // groups)
