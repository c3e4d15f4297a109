"""What a stack of blocks can be given and asked for layer by layer: deep prompts in, intermediate results out.

prompts = DeepPrompts(tokens_JxnxW, slot=1, first=1)  # tokens 1..n are replaced at the entry of layers 1..J
taps = Taps(hidden=(3, 5, -1), attention=(-1,))
pooled, tokens, found = text_tower(ids, deep_prompts=prompts, taps=taps)
found["hidden"]  # [B, 3, N, W]
"""

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

from clipjax.errors import UserError

LayerInputs = dict[str, jax.Array | dict[str, jax.Array]]


@flax.struct.dataclass
class DeepPrompts:
    """Tokens that take the place of others at the entry of some layers (Jia et al. 2022, VPT-deep).

    Layer `first + j` sees `tokens[j]` at the places `slot` to `slot + n - 1`; what the layer before left there is
    discarded. Layers after these see what comes out.

    A tower's sequence has, in this order: of a `ViT` the class token, registers, patches, extra tokens; of a
    `TextTransformer` the text's tokens, the class token. So `slot=1` is the place behind a text's start token, and
    `slot=-n` are the last n, where a ViT has its `extra_tokens`.

    Attributes:
      tokens: [J, n, W], the same for all samples, or [J, B, n, W]; any float dtype.
      slot: place of the first that is replaced; negative: counted from the end.
      first: the first layer that has prompts, from 0.
    """

    tokens: jax.Array
    slot: int = flax.struct.field(pytree_node=False, default=0)
    first: int = flax.struct.field(pytree_node=False, default=0)


@dataclasses.dataclass(frozen=True)
class Taps:
    """Which intermediate results of which layers a tower returns. Layers count from 0, and -1 is the last.

    Each that is asked for comes in a dict under its name, layers in the order given. N tokens are all that the blocks
    see, see `DeepPrompts`; the dtype is that of the computation, and gradients flow through them. A tower keeps what is
    asked for only, but with any of the last four every layer's attention is computed by "einsum".

    Attributes:
      hidden: what a block put out, [B, T, N, W] for T layers, before any norm behind the blocks.
      attention: the weights of attention, [B, T, H, N, N]; rows sum to 1.
      query, key, value: as attention takes them, after their norms and rotation, [B, T, N, H, d].
    """

    hidden: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    query: tuple[int, ...] = ()
    key: tuple[int, ...] = ()
    value: tuple[int, ...] = ()

    def layers(self, depth: int) -> dict[str, tuple[int, ...]]:
        """What is asked for: name -> layers from 0 to `depth` - 1.

        Raises:
          UserError: a layer that the stack does not have, or twice the same.
        """
        found = {}
        for field in dataclasses.fields(self):
            asked = getattr(self, field.name)
            for layer in asked:
                if not -depth <= layer < depth:
                    raise UserError(
                        f"Taps.{field.name} asks for layer {layer}, and the tower has layers 0 to {depth - 1}."
                    )
            if asked:
                found[field.name] = tuple(layer % depth for layer in asked)
                if len(set(found[field.name])) < len(asked):
                    raise UserError(f"Taps.{field.name} asks twice for a layer: {asked}.")
        return found


def layer_inputs(
    depth: int,
    prompts: DeepPrompts | None,
    taps: Mapping[str, tuple[int, ...]],
    numbered: bool,
) -> LayerInputs:
    """Arrays with a leading layer axis, which a scan hands to its blocks; empty if nothing is asked.

    Args:
      depth: of the stack.
      prompts: gives "prompt" [depth, (B,) n, W] and "prompted" bool [depth].
      taps: from `Taps.layers`; gives "row", for each name int32 [depth]: the row of its buffer (see `buffers`) that the
        layer writes. One that is not asked for writes where the next that is will write over it.
      numbered: gives "number", int32 [depth].
    """
    inputs: LayerInputs = {}
    if prompts is not None:
        tokens, first = prompts.tokens, prompts.first
        if first < 0 or first + len(tokens) > depth or tokens.ndim not in (3, 4):
            raise UserError(
                f"DeepPrompts of shape {list(tokens.shape)} from layer {first} on do not fit a tower of {depth} "
                "layers; tokens are [J, n, W] or [J, B, n, W]."
            )
        around = [(first, depth - first - len(tokens))] + [(0, 0)] * (tokens.ndim - 1)
        inputs["prompt"] = jnp.pad(tokens, around)
        layer = jnp.arange(depth)
        inputs["prompted"] = (layer >= first) & (layer < first + len(tokens))
    if taps:
        inputs["row"] = {
            name: jnp.array([sum(a < i for a in layers) for i in range(depth)], jnp.int32)
            for name, layers in taps.items()
        }
    if numbered:
        inputs["number"] = jnp.arange(depth, dtype=jnp.int32)
    return inputs


def with_prompt(x_BxNxW: jax.Array, layer: LayerInputs, slot: int) -> jax.Array:
    """A block's input with this layer's prompts in their place, if there are any."""
    if "prompt" not in layer:
        return x_BxNxW
    prompt = layer["prompt"].astype(x_BxNxW.dtype)
    (batch, tokens, width), (*lead, count, own) = x_BxNxW.shape, prompt.shape
    start = slot + tokens if slot < 0 else slot
    if start < 0 or start + count > tokens or own != width or lead not in ([], [batch]):
        raise UserError(
            f"DeepPrompts of {count} tokens of width {own} at slot {slot} do not fit the tower's input of "
            f"{tokens} tokens of width {width}" + (f" for {batch} samples." if lead else ".")
        )
    prompt = jnp.broadcast_to(prompt, (batch, count, width))
    there = x_BxNxW[:, start : start + count]
    there = jnp.where(layer["prompted"], prompt, there)
    return jnp.concatenate([x_BxNxW[:, :start], there, x_BxNxW[:, start + count :]], axis=1)


def buffers(
    x_BxNxW: jax.Array, heads: int, taps: Mapping[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
    """Room for what the taps ask for: name -> zeros [T + 1, B, ...]; the last row is nobody's."""
    if not taps:
        return {}
    batch, tokens, width = x_BxNxW.shape
    per_head = (batch, tokens, heads, width // heads)
    shapes = dict(hidden=x_BxNxW.shape, attention=(batch, heads, tokens, tokens))
    shapes |= dict(query=per_head, key=per_head, value=per_head)
    return {n: jnp.zeros((len(t) + 1, *shapes[n]), x_BxNxW.dtype) for n, t in taps.items()}


def keep(
    room: Mapping[str, jax.Array], found: Mapping[str, jax.Array], layer: LayerInputs
) -> dict[str, jax.Array]:
    """The buffers with what this layer found in its rows."""
    return {
        name: jax.lax.dynamic_update_index_in_dim(
            x, found[name].astype(x.dtype), layer["row"][name], 0
        )
        for name, x in room.items()
    }


def in_order(
    room: Mapping[str, jax.Array], taps: Mapping[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
    """What a tower returns: [B, T, ...], layers in the order in which they were asked for."""
    result = {}
    for name, layers in taps.items():
        rows = [sorted(layers).index(layer) for layer in layers]
        result[name] = jnp.stack([room[name][row] for row in rows], axis=1)
    return result
