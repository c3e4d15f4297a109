"""The transformer block, and a stack of them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.mesh import constrain
from clipjax.models.attention import SelfAttention
from clipjax.models.layer_inputs import (
    DeepPrompts,
    LayerInputs,
    Taps,
    buffers,
    in_order,
    keep,
    layer_inputs,
    with_prompt,
)
from clipjax.models.layers import LayerNorm, parameter
from clipjax.models.mlp import Mlp
from clipjax.models.moe import MixtureMlp
from clipjax.models.noise import drop_path, dropout, own_seed
from clipjax.models.options import BlockOptions, check_rates
from clipjax.registry import nearest

# What the backward pass recomputes. "none" keeps all activations; "dots" keeps the results of matrix products with
# parameters; "full" keeps only each block's input.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# What goes from block to block: tokens [B, N, W], and the taps' buffers (clipjax/models/layer_inputs.py).
Carry = tuple[jax.Array, dict[str, jax.Array]]


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
      slot: of `DeepPrompts`.
      taps: names of what is kept, see `Taps`.
    """

    options: BlockOptions
    depth: int
    mixture: bool = False
    slot: int = 0
    taps: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        mask: jax.Array | None,
        rotation: jax.Array | None,
        sample_seed: jax.Array | None,
        layer: LayerInputs,
    ) -> tuple[Carry, None]:
        """Returns (carry, None): the pair that a scan over layers wants."""
        o = self.options
        x, room = carry
        # OpenAI CLIP: kernels that write to the residual stream start smaller the deeper the stack.
        out_std = x.shape[-1] ** -0.5 * (2 * self.depth) ** -0.5
        mlp = MixtureMlp if self.mixture else Mlp
        kept = tuple(name for name in self.taps if name != "hidden")

        x = constrain(with_prompt(x, layer, self.slot), "batch", None, None)
        x = self._dropped(x, sample_seed, layer)
        y = self._before(1, x)
        y = SelfAttention(o, out_std, name="attention")(y, mask, rotation, kept)
        y, found = y if kept else (y, {})
        x = x + self._after(1, y, sample_seed, layer)
        y = self._before(2, x)
        y = mlp(o, out_std, name="mlp")(y)
        x = constrain(x + self._after(2, y, sample_seed, layer), "batch", None, None)
        return (x, keep(room, {"hidden": x, **found}, layer)), None

    def _dropped(self, x: jax.Array, seed: jax.Array | None, layer: LayerInputs) -> jax.Array:
        if not self.options.dropout or seed is None:
            return x
        return dropout(x, self.options.dropout, seed, layer["number"])

    def _before(self, branch: int, x: jax.Array) -> jax.Array:
        return self._norm(branch, x) if self.options.norm_order == "pre" else x

    def _after(
        self, branch: int, y: jax.Array, seed: jax.Array | None, layer: LayerInputs
    ) -> jax.Array:
        o = self.options
        if o.norm_order == "post":
            y = self._norm(branch, y)
        if o.layer_scale is not None:
            y = LayerScale(o.layer_scale, name=f"scale_{branch}", **o.dtypes)(y)
        if o.drop_path and seed is not None:
            rate = o.drop_path * layer["number"] / max(self.depth - 1, 1)
            y = drop_path(y, rate, seed, layer["number"], branch)
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
    slot: int = 0
    taps: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, carry: Carry, *shared: Any) -> Carry:
        """From a carry of `Block` to the next; `shared` are the other arguments of `Block`, for these layers."""
        return _blocks(self, self.layers, self.slot, self.taps, mixture=True)(carry, *shared)[0]


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
        *,
        sample_seed: jax.Array | None = None,
        deep_prompts: DeepPrompts | None = None,
        taps: Taps | None = None,
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """[B, N, W] -> [B, N, W].

        Args:
          x_BxNxW: tokens.
          mask: as in `dot_product_attention`.
          rotation: a table for `rope.rotate`.
          sample_seed: uint32 [B], from which alone `dropout` and `drop_path` draw; None: nothing is dropped.
          deep_prompts: tokens that replace others at the entry of layers.
          taps: intermediate results to return.

        Returns:
          Tokens [B, N, W]; with `taps`, a pair of them and the dict that `Taps` describes.
        """
        self._check()
        o = self.options
        mixtures = (self.moe_layers or self.depth) if o.experts else 0
        wanted = {} if taps is None else taps.layers(self.depth)
        noisy = sample_seed is not None and (o.dropout or o.drop_path)
        seed = own_seed(self, sample_seed) if noisy else None
        layers = layer_inputs(self.depth, deep_prompts, wanted, seed is not None)
        slot, names = 0 if deep_prompts is None else deep_prompts.slot, tuple(wanted)

        x = x_BxNxW.astype(jnp.dtype(o.dtype))
        carry, plain = (x, buffers(x, o.heads, wanted)), self.depth - mixtures
        if plain:
            blocks = _blocks(self, plain, slot, names)
            of_these = jax.tree.map(lambda x: x[:plain], layers)
            carry, _ = blocks(carry, mask, rotation, seed, of_these)
        if mixtures:
            how = self.options, self.remat, self.unroll, slot, names
            stack = Mixtures(mixtures, self.depth, *how, name="moe")
            of_these = jax.tree.map(lambda x: x[plain:], layers)
            carry = stack(carry, mask, rotation, seed, of_these)
        x, room = carry
        return x if taps is None else (x, in_order(room, wanted))

    def _check(self) -> None:
        if self.depth < 1:
            raise UserError(f"A transformer needs at least 1 layer, not {self.depth}.")
        if self.remat not in REMAT:
            raise UserError(f"There is no remat policy {self.remat!r}{nearest(self.remat, REMAT)}.")
        orders, order = ("pre", "post"), self.options.norm_order
        if order not in orders:
            raise UserError(f"norm_order cannot be {order!r}{nearest(order, orders)}.")
        check_rates(self.options)
        if self.moe_layers and not self.options.experts:
            raise UserError(f"moe_layers = {self.moe_layers} needs experts; set their number.")
        if not 0 <= self.moe_layers <= self.depth:
            raise UserError(
                f"moe_layers must be from 0 (all) to the depth of {self.depth}, not {self.moe_layers}."
            )


def _blocks(
    stack: nn.Module, layers: int, slot: int, taps: tuple[str, ...], mixture: bool = False
) -> nn.Module:
    """The scan over `layers` blocks, as the submodule `blocks` of the module that is being called."""
    block = Block
    if stack.remat != "none":
        # Inside a loop XLA cannot undo the recomputation; where layers are unrolled it must be kept from that.
        block = nn.remat(Block, policy=REMAT[stack.remat], prevent_cse=stack.unroll != 1)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=layers,
        unroll=stack.unroll or layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(stack.options, stack.depth, mixture, slot, taps, name="blocks")
