"""Matrix products in 8 bits, for training, through qwix.

The recipe is SwitchBack (Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language
models"): two of a layer's three products are done in 8 bits, the output and the gradient of the input. The gradient
of the kernel, which sums over all tokens of the batch and suffers most from rounding, keeps the compute dtype.
Rounding is to nearest, and the derivative takes no notice of it (straight through). Parameters stay what they are.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp

from clipjax.errors import UserError

KINDS = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
ROWS, COLUMNS = (0,), (1,)


def check(kind: str | None) -> None:
    """Refuses an unknown `kind`, and one that qwix would be needed for and is not installed."""
    if kind is None:
        return
    if kind not in KINDS:
        raise UserError(f"model.quantize must be None, {', '.join(KINDS)}, not {kind!r}.")
    _qwix()


def _qwix() -> ModuleType:
    try:
        import qwix
    except ImportError as error:
        raise UserError(
            "model.quantize needs the package qwix; run: pip install 'clipjax[quantize]'."
        ) from error
    return qwix


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def quantized_matmul(x_RxW: jax.Array, kernel_WxF: jax.Array, kind: str) -> jax.Array:
    """`x @ kernel` with both rounded to 8 bits, one scale for each row of x and each column of the kernel.

    Args:
      x_RxW: bfloat16 or float32.
      kernel_WxF: of the same dtype.
      kind: a key of `KINDS`.

    Returns:
      [R, F] in the dtype of x; summed in int32 (int8) or float32 (fp8), rescaled in float32.
    """
    return _product(x_RxW, kernel_WxF, kind)


def _product(left: jax.Array, right: jax.Array, kind: str) -> jax.Array:
    qwix = _qwix()

    def rounded(matrix: jax.Array, channels: tuple[int, ...]):
        # Float32 scales: they multiply the sums, which have more digits than bfloat16.
        return qwix.quantize(matrix.astype(jnp.float32), KINDS[kind], channelwise_axes=channels)

    contract = (((1,), (0,)), ((), ()))
    y = qwix.dot_general(rounded(left, ROWS), rounded(right, COLUMNS), contract)
    return y.astype(left.dtype)


def _forward(x, kernel, kind):
    return _product(x, kernel, kind), (x, kernel)


def _backward(kind, residuals, dy):
    x, kernel = residuals
    return _product(dy, kernel.T, kind), x.T @ dy


quantized_matmul.defvjp(_forward, _backward)
