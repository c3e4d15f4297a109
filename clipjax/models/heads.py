"""From a tower to the shared space: what every model with a tower does around it."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import Dense, activation
from clipjax.registry import nearest

KINDS = ("linear", "bias", "mlp", "mlp_half", "none")


def l2_normalise(x: jax.Array) -> jax.Array:
    """Float32 vectors of length 1 along the last axis; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    nonzero = square > 1e-24
    return x * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def normalise_pixels(image: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 -> (x / 255 - mean) / std in float32; what is not uint8 passes unchanged.

    Args:
      image: images [B, H, W, 3], or flattened patches [B, N, 3pp] in the order row, column, channel.
      mean: of the three channels.
      std: of the three channels.
    """
    if image.dtype != jnp.uint8:
        return image
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    shape = image.shape
    if image.ndim == 3:
        image = image.reshape(*shape[:2], -1, len(mean))
    return ((image.astype(jnp.float32) / 255.0 - mean) / std).reshape(shape)


class Projection(nn.Module):
    """From a tower's width to the shared space.

    Attributes:
      kind: "linear" (CLIP), "bias" (linear with bias, SigLIP's text), "none", "mlp" (a hidden layer of twice the
        tower's width, for frozen towers), or "mlp_half" (a hidden layer between the two widths, no biases: open_clip's
        projection of towers from transformers).
    """

    kind: str
    width: int
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxW: jax.Array) -> jax.Array:
        """[B, W] -> [B, width]."""
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        tower_width = x_BxW.shape[-1]
        std = tower_width**-0.5
        if self.kind in ("linear", "bias"):
            return Dense(
                self.width, ("embed", None), std, self.kind == "bias", name="out", **dtypes
            )(x_BxW)
        if self.kind in ("mlp", "mlp_half"):
            biases = self.kind == "mlp"
            size = 2 * tower_width if self.kind == "mlp" else (tower_width + self.width) // 2
            hidden = Dense(size, ("embed", "mlp"), std, biases, name="fc_in", **dtypes)(x_BxW)
            hidden = activation("gelu")(hidden)
            return Dense(self.width, ("mlp", None), size**-0.5, biases, name="fc_out", **dtypes)(
                hidden
            )
        if self.kind != "none":
            raise UserError(f"There is no projection {self.kind!r}{nearest(self.kind, KINDS)}.")
        if tower_width != self.width:
            raise UserError(
                f"Without a projection a tower of width {tower_width} must equal the shared width {self.width}; "
                "set model.embed_dim or choose a projection."
            )
        return x_BxW


def image_features(
    tower: nn.Module,
    batch: Mapping[str, jax.Array],
    sample_seed: jax.Array | None,
    mean: Sequence[float],
    std: Sequence[float],
    **options: Any,
) -> tuple[Any, ...]:
    """What an image tower makes of a batch's `image` (see `normalise_pixels`), of any `image_shape`.

    Within a `DualEncoder`, vectors in the shared space that are not normalised, and the attention of the last block:

    >>> pooled, tokens, found = image_features(
    ...     self.image, batch, seed, self.mean, self.std, taps=Taps(attention=(-1,))
    ... )
    >>> raw_BxD = self.image_head(pooled)

    Args:
      tower: the image tower.
      batch: `image` [B, H, W, 3], or patches [B, N, P] with `image_shape`; of several views, give one.
      sample_seed: uint32 [B] while training, or None.
      mean, std: of the channels, for uint8.
      **options: for the tower's call, such as `extra_tokens`, `deep_prompts`, `taps`; with `embeddings` no `image` is
        read.

    Returns:
      As the tower: pooled [B, W], tokens [B, N, W], with `taps` a dict.

    Raises:
      UserError: an option that this tower does not take.
    """
    if "image_shape" in batch:
        options["image_shape"] = batch["image_shape"]
    _check_options(tower, "image", options)
    image = None
    if options.get("embeddings") is None:
        image = normalise_pixels(batch["image"], mean, std)
    return tower(image, sample_seed=sample_seed, **options)


def image_outputs(
    tower: nn.Module,
    head: nn.Module,
    batch: Mapping[str, jax.Array],
    sample_seed: jax.Array | None,
    mean: Sequence[float],
    std: Sequence[float],
    **options: Any,
) -> dict[str, jax.Array]:
    """`image_embedding`, `image_embedding_raw` and `image_tokens`; with `taps` also `image_hidden` and the like."""
    pooled, tokens, *found = image_features(tower, batch, sample_seed, mean, std, **options)
    raw = head(pooled).astype(jnp.float32)
    outputs = {"image_embedding": l2_normalise(raw), "image_embedding_raw": raw}
    outputs["image_tokens"] = tokens
    return outputs | {f"image_{k}": x for taps in found for k, x in taps.items()}


def text_features(
    tower: nn.Module,
    batch: Mapping[str, jax.Array],
    sample_seed: jax.Array | None,
    **options: Any,
) -> tuple[Any, ...]:
    """What a text tower makes of a batch's `text` [B, L] or [B, K, L], with its `text_mask` if there is one.

    Of K texts each has a seed of its own. For texts that are not of the batch, such as class names [C, L]:

    >>> pooled_CxW, _ = text_features(self.text, {"text": names_CxL}, None)

    Args:
      tower: the text tower.
      batch: `text` and perhaps `text_mask`.
      sample_seed: uint32 [B] while training, or None.
      **options: for the tower's call: `embeddings` [B, L, W] or [B, K, L, W], and, where a row is a text (B K of them),
        `deep_prompts` and `taps`.

    Returns:
      As the tower, with the axes of `text` before L in place of the rows: pooled [B, W] or [B, K, W], ...

    Raises:
      UserError: an option that this tower does not take.
    """
    _check_options(tower, "text", options)
    text, mask = batch["text"], batch.get("text_mask")
    *lead, length = text.shape
    if sample_seed is not None and len(lead) > 1:
        place = jnp.arange(lead[1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
        sample_seed = (sample_seed[:, None] + place).reshape(-1)
    if options.get("embeddings") is not None:
        embeddings = options["embeddings"]
        options["embeddings"] = embeddings.reshape(-1, *embeddings.shape[-2:])
    found = tower(
        text.reshape(-1, length),
        mask=None if mask is None else mask.reshape(-1, length),
        sample_seed=sample_seed,
        **options,
    )
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)


def text_outputs(
    tower: nn.Module,
    head: nn.Module,
    batch: Mapping[str, jax.Array],
    sample_seed: jax.Array | None,
    **options: Any,
) -> dict[str, jax.Array]:
    """`text_embedding`, `text_embedding_raw` and `text_tokens`; with `taps` also `text_hidden` and the like."""
    pooled, tokens, *found = text_features(tower, batch, sample_seed, **options)
    raw = head(pooled).astype(jnp.float32)
    outputs = {"text_embedding": l2_normalise(raw), "text_embedding_raw": raw}
    outputs["text_tokens"] = tokens
    return outputs | {f"text_{k}": x for taps in found for k, x in taps.items()}


def _check_options(tower: nn.Module, what: str, options: Mapping[str, Any]) -> None:
    taken = inspect.signature(type(tower).__call__).parameters
    for name in options:
        if name not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            raise UserError(
                f"The {what} tower {type(tower).__name__} takes no {name!r}; of the library's towers ViT and "
                "TextTransformer do."
            )
