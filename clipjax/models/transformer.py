"""The transformer block, and a stack of them."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.mesh import constrain
from clipjax.models.attention import SelfAttention
from clipjax.models.layers import LayerNorm, parameter
from clipjax.models.mlp import Mlp
from clipjax.models.moe import MixtureMlp
from clipjax.models.options import BlockOptions
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
    """Attention and an MLP, each with a norm and added to its input.

    Attributes:
      options: what the block is.
      depth: of the whole stack.
      mixture: whether the MLP is a mixture of experts.
    """

    options: BlockOptions
    depth: int
    mixture: bool = False

    @nn.compact
    def __call__(
        self, x_BxNxW: jax.Array, mask: jax.Array | None, rotation: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """Returns (x, None): the pair that a scan over layers wants."""
        o = self.options
        # OpenAI CLIP: kernels that write to the residual stream start smaller the deeper the stack.
        out_std = x_BxNxW.shape[-1] ** -0.5 * (2 * self.depth) ** -0.5
        mlp = MixtureMlp if self.mixture else Mlp

        x = constrain(x_BxNxW, "batch", None, None)
        y = self._before(1, x)
        y = SelfAttention(o, out_std, name="attention")(y, mask, rotation)
        x = x + self._after(1, y)
        y = self._before(2, x)
        y = mlp(o, out_std, name="mlp")(y)
        return constrain(x + self._after(2, y), "batch", None, None), None

    def _before(self, branch: int, x: jax.Array) -> jax.Array:
        return self._norm(branch, x) if self.options.norm_order == "pre" else x

    def _after(self, branch: int, y: jax.Array) -> jax.Array:
        o = self.options
        if o.norm_order == "post":
            y = self._norm(branch, y)
        if o.layer_scale is not None:
            y = LayerScale(o.layer_scale, name=f"scale_{branch}", **o.dtypes)(y)
        return y

    def _norm(self, branch: int, x: jax.Array) -> jax.Array:
        return LayerNorm(self.options.eps, name=f"norm_{branch}", **self.options.dtypes)(x)


class Mixtures(nn.Module):
    """The last `layers` of `depth` blocks, whose MLPs are mixtures of experts. Other attributes as in `Transformer`."""

    layers: int
    depth: int
    options: BlockOptions
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(
        self, x_BxNxW: jax.Array, mask: jax.Array | None, rotation: jax.Array | None
    ) -> jax.Array:
        """[B, N, W] -> [B, N, W]."""
        return _blocks(self, self.layers, mixture=True)(x_BxNxW, mask, rotation)[0]


class Transformer(nn.Module):
    """`depth` blocks whose parameters are stacked along a leading layer axis.

    The stack is one `lax.scan`, so a deep tower compiles as fast as a shallow one. `unroll` copies that many layers
    into the scan's body: unrolled fully (0) it runs faster on a CPU, and the parameters are the same. Blocks that are
    mixtures of experts are a second such stack, `moe/blocks`.

    Attributes:
      options: what the blocks are.
      remat: what the backward pass recomputes, a key of `REMAT`.
      unroll: layers per scan step; 0 means all.
      moe_layers: how many of the last blocks are mixtures, if `options.experts` is not 0; 0 means all.
    """

    depth: int
    options: BlockOptions
    remat: str = "none"
    unroll: int = 1
    moe_layers: int = 0

    @nn.compact
    def __call__(
        self,
        x_BxNxW: jax.Array,
        mask: jax.Array | None = None,
        rotation: jax.Array | None = None,
    ) -> jax.Array:
        """[B, N, W] -> [B, N, W]; `mask` as in `dot_product_attention`, `rotation` a table for `rope.rotate`."""
        self._check()
        o = self.options
        mixtures = (self.moe_layers or self.depth) if o.experts else 0
        x = x_BxNxW.astype(jnp.dtype(o.dtype))
        if self.depth > mixtures:
            x, _ = _blocks(self, self.depth - mixtures)(x, mask, rotation)
        if mixtures:
            stack = Mixtures(mixtures, self.depth, o, self.remat, self.unroll, name="moe")
            x = stack(x, mask, rotation)
        return x

    def _check(self) -> None:
        if self.depth < 1:
            raise UserError(f"A transformer needs at least 1 layer, not {self.depth}.")
        if self.remat not in REMAT:
            raise UserError(f"There is no remat policy {self.remat!r}{nearest(self.remat, REMAT)}.")
        orders, order = ("pre", "post"), self.options.norm_order
        if order not in orders:
            raise UserError(f"norm_order cannot be {order!r}{nearest(order, orders)}.")
        if self.moe_layers and not self.options.experts:
            raise UserError(f"moe_layers = {self.moe_layers} needs experts; set their number.")
        if not 0 <= self.moe_layers <= self.depth:
            raise UserError(
                f"moe_layers must be from 0 (all) to the depth of {self.depth}, not {self.moe_layers}."
            )


def _blocks(stack: nn.Module, layers: int, mixture: bool = False) -> nn.Module:
    """The scan over `layers` blocks, as the submodule `blocks` of the module that is being called."""
    block = Block
    if stack.remat != "none":
        # Inside a loop XLA cannot undo the recomputation; where layers are unrolled it must be kept from that.
        block = nn.remat(Block, policy=REMAT[stack.remat], prevent_cse=stack.unroll != 1)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=layers,
        unroll=stack.unroll or layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(stack.options, stack.depth, mixture, name="blocks")
