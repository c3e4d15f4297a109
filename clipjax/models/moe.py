"""Mixture of experts: an MLP for each kind of token (Shazeer et al. 2017), as CLIP-MoE has them (Zhang et al. 2024).

A router without bias scores each token in float32; the token goes to its best experts, whose answers are summed with
the router's probabilities, renormalised over those chosen. No expert has a limit, so no token is dropped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.mesh import constrain
from clipjax.models.experts import Experts, apply_experts
from clipjax.models.layers import activation, parameter
from clipjax.models.mlp import check_mlp
from clipjax.models.options import BlockOptions


def route(logits_TxE: jax.Array, experts_per_token: int) -> tuple[jax.Array, jax.Array]:
    """(weights [T, K] in float32 that sum to 1, experts [T, K]) of each token's best experts, best first."""
    probabilities = jax.nn.softmax(logits_TxE.astype(jnp.float32), axis=-1)
    best_TxK, index_TxK = jax.lax.top_k(probabilities, experts_per_token)
    return best_TxK / jnp.sum(best_TxK, axis=-1, keepdims=True), index_TxK


class MixtureMlp(nn.Module):
    """A mixture of MLPs.

    Parameters: `router/kernel` [W, E]; `experts/fc_in/kernel` [E, W, F], `experts/fc_out/kernel` [E, F, W], their
    biases, and for SwiGLU `experts/fc_gate`.

    Attributes:
      options: those of `Mlp`, `experts` and `experts_per_token` count.
      out_std: as in `Mlp`.
    """

    options: BlockOptions
    out_std: float | None = None

    @nn.compact
    def __call__(self, x_BxNxW: jax.Array) -> jax.Array:
        """[B, N, W] -> [B, N, W]."""
        o = self.options
        self._check()
        x_TxW = jnp.asarray(x_BxNxW, o.dtype).reshape(-1, x_BxNxW.shape[-1])
        logits_TxE = Router(o.experts, o.param_dtype, name="router")(x_TxW)
        weights_TxK, index_TxK = route(logits_TxE, o.experts_per_token)
        layers = ExpertLayers(o, self.out_std, name="experts")(x_TxW.shape[1])
        y = apply_experts(x_TxW, weights_TxK, index_TxK, layers, self._mlp)
        return y.reshape(x_BxNxW.shape)

    def _mlp(self, layer: Callable[[str, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """One expert, whose products with bias are `layer(name, x)`."""
        if self.options.mlp == "swiglu":
            return layer("fc_out", activation("silu")(layer("fc_gate", x)) * layer("fc_in", x))
        return layer("fc_out", activation(self.options.activation)(layer("fc_in", x)))

    def _check(self) -> None:
        o = self.options
        check_mlp(o.mlp)
        if not 1 <= o.experts_per_token <= o.experts:
            raise UserError(
                f"experts_per_token must be from 1 to the number of experts, {o.experts}, not {o.experts_per_token}."
            )
        if o.mlp_norm:
            raise UserError("A mixture of experts has no mlp_norm; set it to False.")
        if any(map(o.lora, ("fc_in", "fc_gate", "fc_out"))):
            raise UserError(
                "A mixture of experts has no adapters; leave fc_in, fc_gate and fc_out out of lora_targets."
            )
        if o.quantize is not None:
            raise UserError("A mixture of experts cannot be quantised; set model.quantize to None.")


class Router(nn.Module):
    """Scores of each expert, a product in float32 whatever the compute dtype."""

    experts: int
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_TxW: jax.Array) -> jax.Array:
        """[T, W] -> float32 [T, E]."""
        shape = (x_TxW.shape[-1], self.experts)
        init = nn.initializers.normal(shape[0] ** -0.5)
        kernel = parameter(self, "kernel", init, shape, ("embed", "expert"), self.param_dtype)
        wide = x_TxW.astype(jnp.float32), kernel.astype(jnp.float32)
        logits = jnp.matmul(*wide, precision=jax.lax.Precision.HIGHEST)
        # A few numbers a token: whole, or each step of the softmax would be a collective of its own.
        return constrain(logits, "batch", None)


class ExpertLayers(nn.Module):
    """The parameters of all experts, in the compute dtype. Attributes as in `MixtureMlp`."""

    options: BlockOptions
    out_std: float | None = None

    @nn.compact
    def __call__(self, width: int) -> Experts:
        """Layers by name; `width` W is the tower's."""
        o = self.options
        into = ("fc_gate", "fc_in") if o.mlp == "swiglu" else ("fc_in",)
        std = (2 * width) ** -0.5
        layers = {n: self._layer(n, (width, o.mlp_dim), ("embed", "mlp"), std) for n in into}
        std = self.out_std or o.mlp_dim**-0.5
        return layers | {"fc_out": self._layer("fc_out", (o.mlp_dim, width), ("mlp", "embed"), std)}

    def _layer(
        self, name: str, shape: tuple[int, int], axes: tuple[str, str], std: float
    ) -> tuple[jax.Array, jax.Array]:
        o = self.options
        kernel, bias = ExpertDense(o.experts, shape, axes, std, o.param_dtype, name=name)()
        return kernel.astype(o.dtype), bias.astype(o.dtype)


class ExpertDense(nn.Module):
    """Kernel [E, in, out] and bias [E, out] of one layer of all experts."""

    experts: int
    shape: tuple[int, int]
    axes: tuple[str, str]
    std: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """(kernel, bias)."""
        init = nn.initializers.normal(self.std), nn.initializers.zeros
        shape, axes = (self.experts, *self.shape), ("expert", *self.axes)
        kernel = parameter(self, "kernel", init[0], shape, axes, self.param_dtype)
        bias_axes = ("expert", self.axes[1])
        return kernel, parameter(
            self, "bias", init[1], (self.experts, self.shape[1]), bias_axes, self.param_dtype
        )
