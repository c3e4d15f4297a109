"""The pre-norm transformer block, and a stack of them."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.mesh import constrain
from clipjax.models.attention import SelfAttention
from clipjax.models.layers import LayerNorm, Mlp, parameter
from clipjax.registry import nearest

# What the backward pass recomputes. "none" keeps all activations; "dots" keeps the results of matrix products with
# parameters; "full" keeps only each block's input.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerScale(nn.Module):
    """Learned gain on a residual branch (Touvron et al. 2021, CaiT, equation 4)."""

    init: float
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., W] -> [..., W]."""
        init = nn.initializers.constant(self.init)
        gamma = parameter(self, "gamma", init, x.shape[-1:], ("norm",), self.param_dtype)
        return x * gamma.astype(self.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Settings as in `Transformer`."""

    heads: int
    mlp_dim: int
    depth: int
    activation: str = "gelu"
    eps: float = 1e-5
    layer_scale: float | None = None
    qk_norm: bool = False
    causal: bool = False
    attention_impl: str = "einsum"
    quantize: str | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxNxW: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, None]:
        """Returns (x, None): the pair that a scan over layers wants."""
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        # OpenAI CLIP: kernels that write to the residual stream start smaller the deeper the stack.
        out_std = x_BxNxW.shape[-1] ** -0.5 * (2 * self.depth) ** -0.5

        x = constrain(x_BxNxW, "batch", None, None)
        y = LayerNorm(self.eps, name="norm_1", **dtypes)(x)
        y = SelfAttention(
            self.heads,
            self.qk_norm,
            out_std,
            self.eps,
            self.causal,
            self.attention_impl,
            self.quantize,
            name="attention",
            **dtypes,
        )(y, mask)
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name="scale_1", **dtypes)(y)
        x = x + y
        y = LayerNorm(self.eps, name="norm_2", **dtypes)(x)
        y = Mlp(self.mlp_dim, self.activation, out_std, self.quantize, name="mlp", **dtypes)(y)
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name="scale_2", **dtypes)(y)
        return constrain(x + y, "batch", None, None), None


class Transformer(nn.Module):
    """`depth` blocks whose parameters are stacked along a leading layer axis.

    The stack is one `lax.scan`, so a deep tower compiles as fast as a shallow one. `unroll` copies that many layers
    into the scan's body: unrolled fully (0) it runs faster on a CPU, and the parameters are the same.

    Attributes:
      remat: what the backward pass recomputes, a key of `REMAT`.
      unroll: layers per scan step; 0 means all.
      causal, attention_impl, quantize: see `SelfAttention`; `quantize` is for the MLPs too.
    """

    depth: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    eps: float = 1e-5
    layer_scale: float | None = None
    qk_norm: bool = False
    remat: str = "none"
    unroll: int = 1
    causal: bool = False
    attention_impl: str = "einsum"
    quantize: str | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxNxW: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, N, W] -> [B, N, W]; `mask` as in `dot_product_attention`."""
        if self.depth < 1:
            raise UserError(f"A transformer needs at least 1 layer, not {self.depth}.")
        if self.remat not in REMAT:
            raise UserError(f"There is no remat policy {self.remat!r}{nearest(self.remat, REMAT)}.")
        block = Block
        if self.remat != "none":
            # Inside a loop XLA cannot undo the recomputation; where layers are unrolled it must be kept from that.
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=self.unroll != 1)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=self.unroll or self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        blocks = scanned(
            self.heads,
            self.mlp_dim,
            self.depth,
            self.activation,
            self.eps,
            self.layer_scale,
            self.qk_norm,
            self.causal,
            self.attention_impl,
            self.quantize,
            self.dtype,
            self.param_dtype,
            name="blocks",
        )
        x, _ = blocks(x_BxNxW.astype(jnp.dtype(self.dtype)), mask)
        return x
