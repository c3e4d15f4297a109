"""Dense, LayerNorm and activations: the layers under every tower.

Parameters are created in `param_dtype`, carry logical axis names (see clipjax/mesh.py), and are cast to the compute
`dtype` where they are used. Norms are computed in float32.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.activations import ACTIVATIONS
from clipjax.models.options import Lora
from clipjax.models.quantize import quantized_matmul
from clipjax.registry import nearest


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation called `name`; UserError with the nearest name if there is none."""
    if name not in ACTIVATIONS:
        raise UserError(f"There is no activation {name!r}{nearest(name, ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def parameter(
    module: nn.Module,
    name: str,
    init: Callable,
    shape: Sequence[int],
    axes: Sequence[str | None],
    dtype: str,
) -> jax.Array:
    """Declares one parameter with logical axis names."""
    return module.param(
        name, nn.with_logical_partitioning(init, tuple(axes)), tuple(shape), jnp.dtype(dtype)
    )


def matmul(x: jax.Array, kernel: jax.Array, quantize: str | None = None) -> jax.Array:
    """`x @ kernel` over the last axis of x: [..., W] x [W, F] -> [..., F].

    With `quantize`, a kind of clipjax/models/quantize.py, the product is done in 8 bits.

    As one matrix of rows: for more than two axes XLA's CPU backend copies transposed operands for the kernel's
    gradient, which costs an eighth of a whole step (docs/speed.md).
    """
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ kernel if quantize is None else quantized_matmul(rows, kernel, quantize)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis of x.

    Attributes:
      features: output width.
      axes: logical names of the kernel's two axes.
      std: standard deviation of the normal initialisation.
      quantize: see `matmul`.
      lora: its adapter, parameters `lora_a` [W, r] and `lora_b` [r, features]; None: none.
    """

    features: int
    axes: tuple[str | None, str | None]
    std: float
    use_bias: bool = True
    quantize: str | None = None
    lora: Lora | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., W] -> [..., features]."""
        shape = (x.shape[-1], self.features)
        kernel = parameter(
            self, "kernel", nn.initializers.normal(self.std), shape, self.axes, self.param_dtype
        )
        y = matmul(x.astype(self.dtype), kernel.astype(self.dtype), self.quantize)
        if self.use_bias:
            bias = parameter(
                self, "bias", nn.initializers.zeros, shape[1:], self.axes[1:], self.param_dtype
            )
            y = y + bias.astype(self.dtype)
        if self.lora is not None:
            (width, features), rank, (into, out) = shape, self.lora.rank, self.axes
            a = low_rank(self, "lora_a", (width, rank), (into, None), self.param_dtype)
            b = low_rank(self, "lora_b", (rank, features), (None, out), self.param_dtype)
            small = matmul(x.astype(self.dtype), a.astype(self.dtype))
            y = y + self.lora.scale * matmul(small, b.astype(self.dtype))
        return y


def low_rank(
    module: nn.Module,
    name: str,
    shape: Sequence[int],
    axes: Sequence[str | None],
    dtype: str,
) -> jax.Array:
    """Declares one factor of an adapter: `lora_a` [W, ...] begins at random, `lora_b` at zero."""
    init = nn.initializers.normal(shape[0] ** -0.5) if name == "lora_a" else nn.initializers.zeros
    return parameter(module, name, init, shape, axes, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: jax.Array, scale_W: jax.Array, bias_W: jax.Array, eps: float, dtype: str
) -> jax.Array:
    """LayerNorm over the last axis, computed in float32, [..., W] in `dtype`.

    The derivative is written out for what autodiff keeps: several float32 arrays of the size of x. Here x stays as it
    came, with two numbers a row; in bfloat16 without rematerialisation that halves what a block keeps.
    """
    return _norm_forward(x, scale_W, bias_W, eps, dtype)[0]


def _norm_forward(x, scale_W, bias_W, eps, dtype):
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    rstd = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    y = centred * rstd * scale_W.astype(jnp.float32) + bias_W.astype(jnp.float32)
    return y.astype(dtype), (x, mean, rstd, scale_W, bias_W)


def _norm_backward(eps, dtype, residuals, dy):
    del eps, dtype
    x, mean, rstd, scale_W, bias_W = residuals
    dy = dy.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * rstd
    rows = tuple(range(x.ndim - 1))
    dscale, dbias = jnp.sum(dy * normed, axis=rows), jnp.sum(dy, axis=rows)
    g = dy * scale_W.astype(jnp.float32)
    along = jnp.mean(g * normed, axis=-1, keepdims=True)
    dx = rstd * (g - jnp.mean(g, axis=-1, keepdims=True) - normed * along)
    return dx.astype(x.dtype), dscale.astype(scale_W.dtype), dbias.astype(bias_W.dtype)


layer_norm.defvjp(_norm_forward, _norm_backward)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32, returned in the compute dtype."""

    eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., W] -> [..., W]."""
        shape = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, shape, ("norm",), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, shape, ("norm",), self.param_dtype)
        return layer_norm(x, scale, bias, self.eps, self.dtype)
