"""The Prompter: one transformer layer that turns image tokens and a prompt into the embedding of a region.

Chen et al. 2025, CLOC (arXiv 2410.02746), section 3. A prompt is a box (the code of its two corners) or a text (its
embedding); it is put before the image tokens, one layer with one head is applied, all tokens are averaged, and the
average is projected into the shared space.

What an image's prompts have in common is computed once. Attention of image tokens to image tokens does not depend on
the prompt: with its log-sum of exponentials l and its result a, a token's attention to the image and a prompt's tokens
is a softmax over (l, s_1, ..., s_T) that weighs (a, v_1, ..., v_T). And the average commutes with the last product of
the MLP. So a prompt costs one product, N x W x F multiply-adds, where the plain layer costs N (4 W W + 2 N W + 2 W F):
with F = 4 W about a third. The numbers are those of the plain layer (`tests/models/test_prompter.py`).
"""

import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.grid import SQUARE
from clipjax.models.heads import Projection
from clipjax.models.layers import Dense, LayerNorm, activation, parameter
from clipjax.models.regions.boxes import encode_corners, encode_grid
from clipjax.models.transformer import REMAT
from clipjax.registry import nearest


class _Image(NamedTuple):
    """What all prompts of an image share.

    Attributes:
      tokens_BxNxW: the image tokens.
      query_BxNxW, key_BxNxW, value_BxNxW: of attention; values after the output projection, which commutes with it.
      attended_BxNxW: attention of the image tokens to each other.
      log_sum_BxN: the logarithm of its softmax's denominator.
      real_BxN: False where a token is padding; None: all are real.
    """

    tokens_BxNxW: jax.Array
    query_BxNxW: jax.Array
    key_BxNxW: jax.Array
    value_BxNxW: jax.Array
    attended_BxNxW: jax.Array
    log_sum_BxN: jax.Array
    real_BxN: jax.Array | None


class _Prompt(NamedTuple):
    """The tokens of P prompts after attention, and their keys and values, [B, P, T, W]."""

    rows: jax.Array
    key: jax.Array
    value: jax.Array


class Prompter(nn.Module):
    """Regions of images, by box or by text.

    Cost, forward, for P prompts an image (2 M with grounding): 2 N (4 W W + 2 N W) + 2 P N W F FLOPs an image beside
    what the few prompt tokens cost; with ViT-B/16 at 224 px (N = 196, W = 768, F = 3072) a prompt is a fortieth of the
    ViT. Memory: N x N attention weights and six N x W arrays an image, and with remat="full" the N x F hidden layer of
    one prompt at a time. Communication: the gradients of the MLP's first product and of the norm before it are summed
    over devices once a prompt (F W numbers), where a transformer layer sums them once; all else as there.

    Attributes:
      mlp_ratio: hidden width F of the MLP over the tower's width W.
      activation: of the MLP and of the box head.
      eps: of every LayerNorm.
      remat: see `Transformer`; applied to each prompt.
      unroll: prompts per step of the loop over an image's prompts; 0 means all.
      token_positions: whether the code of corners is also added to the image tokens, at their patches' centres, as SAM
        does (Kirillov et al. 2023). Not in the paper, whose tower must learn to say where a token is.
    """

    takes_texts: ClassVar[bool] = True  # so there is a grounded box of each text

    mlp_ratio: float = 4.0
    activation: str = "gelu"
    eps: float = 1e-5
    remat: str = "full"
    unroll: int = 1
    token_positions: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens_BxNxW: jax.Array,
        embed_dim: int,
        *,
        grid: int | None = None,
        boxes_BxMx4: jax.Array | None = None,
        text_BxMxD: jax.Array | None = None,
        real_BxN: jax.Array | None = None,
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Embeds what is in boxes, and finds what texts mean.

        Args:
          tokens_BxNxW: the image tower's tokens before pooling, in any order.
          embed_dim: width D of the shared space.
          grid: patches on a side of the square grid that the tokens are, row by row; None: they are none.
          boxes_BxMx4: x1, y1, x2, y2 as fractions of the frame; None: no boxes.
          text_BxMxD: embeddings of texts; None: no texts.
          real_BxN: False where a token is padding.

        Returns:
          Embeddings of the boxes [B, M, D], not normalised, and the boxes of the texts [B, M, 4], not clipped; None for
          what was not asked for.

        Raises:
          UserError: `token_positions` without a grid.
        """
        width = tokens_BxNxW.shape[-1]
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        layer = _Layer(
            width,
            round(self.mlp_ratio * width),
            self.activation,
            self.eps,
            self.remat,
            self.unroll,
            name="layer",
            **dtypes,
        )
        norm = LayerNorm(self.eps, name="norm_post", **dtypes)
        project = Projection("linear", embed_dim, name="projection", **dtypes)
        if self.token_positions:
            if grid is None:
                raise UserError(f"model.regions.token_positions needs {SQUARE}")
            tokens_BxNxW = tokens_BxNxW + encode_grid(grid, width)
        image = layer.image(tokens_BxNxW.astype(self.dtype), real_BxN)

        def embed(prompt_BxPxTxW: jax.Array) -> jax.Array:
            return project(norm(layer(image, prompt_BxPxTxW.astype(self.dtype))))

        regions = found = None
        if boxes_BxMx4 is not None:
            # A corner's place does not tell which corner it is.
            init = nn.initializers.normal(0.02)
            corner_2xW = parameter(
                self, "corner_embedding", init, (2, width), (None, "embed"), self.param_dtype
            )
            regions = embed(encode_corners(boxes_BxMx4, width) + corner_2xW)
        if text_BxMxD is not None:
            prompt = Dense(width, (None, "embed"), 1.0, name="text_prompt", **dtypes)(text_BxMxD)
            hidden = Dense(embed_dim, ("embed", "mlp"), embed_dim**-0.5, name="box_in", **dtypes)(
                embed(prompt[:, :, None])
            )
            hidden = activation(self.activation)(hidden)
            found = Dense(4, ("mlp", None), embed_dim**-0.5, name="box_out", **dtypes)(hidden)
            found = found.astype(jnp.float32)
        return regions, found


class _Layer(nn.Module):
    """A pre-norm transformer layer with one head, and the average of its tokens.

    `image` computes what prompts share, `__call__` the rest for P prompts of T tokens.
    """

    width: int
    mlp_dim: int
    activation: str
    eps: float
    remat: str
    unroll: int
    dtype: str
    param_dtype: str

    def setup(self) -> None:
        if self.remat not in REMAT:
            raise UserError(f"There is no remat policy {self.remat!r}{nearest(self.remat, REMAT)}.")
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        # As in a stack of one block: what writes to the residual stream starts smaller.
        std, out_std = self.width**-0.5, (2 * self.width) ** -0.5
        self.norm_1 = LayerNorm(self.eps, **dtypes)
        # One head: split over devices it would be all reduction, so only the MLP is.
        self.qkv = Dense(3 * self.width, ("embed", None), std, **dtypes)
        self.out = Dense(self.width, (None, "embed"), out_std, **dtypes)
        self.fc_out = Dense(self.width, ("mlp", "embed"), out_std, **dtypes)
        hidden = _Hidden
        if self.remat != "none":
            hidden = nn.remat(hidden, policy=REMAT[self.remat], prevent_cse=self.unroll != 1)
        self.hidden = nn.scan(
            hidden,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(nn.broadcast, 1),
            out_axes=1,
            unroll=self.unroll or True,
        )(self.mlp_dim, self.activation, self.eps, **dtypes)

    def image(self, tokens_BxNxW: jax.Array, real_BxN: jax.Array | None) -> _Image:
        """What all prompts of an image share."""
        query, key, value = self._qkv(tokens_BxNxW)
        logits_BxNxN = _hide(_logits("bnw,bmw->bnm", query, key), real_BxN)
        log_sum_BxN = jax.nn.logsumexp(logits_BxNxN, axis=-1)
        weights = jnp.exp(logits_BxNxN - log_sum_BxN[..., None]).astype(value.dtype)
        attended = jnp.einsum("bnm,bmw->bnw", weights, value)
        return _Image(tokens_BxNxW, query, key, value, attended, log_sum_BxN, real_BxN)

    def __call__(self, image: _Image, prompt_BxPxTxW: jax.Array) -> jax.Array:
        """Prompts [B, P, T, W] -> the average of all tokens after the layer, [B, P, W]."""
        query, key, value = self._qkv(prompt_BxPxTxW)
        to_image = _logits("bptw,bnw->bptn", query, image.key_BxNxW)
        to_image = _hide(to_image, image.real_BxN)
        to_prompt = _logits("bptw,bpuw->bptu", query, key)
        weights = jax.nn.softmax(jnp.concatenate([to_image, to_prompt], axis=-1), axis=-1)
        weights = weights.astype(value.dtype)
        count = to_image.shape[-1]
        attended = jnp.einsum("bptn,bnw->bptw", weights[..., :count], image.value_BxNxW)
        attended += jnp.einsum("bptu,bpuw->bptw", weights[..., count:], value)
        prompt = _Prompt(prompt_BxPxTxW + attended, key, value)
        _, (tokens_BxPxW, hidden_BxPxF) = self.hidden(None, image, prompt)
        return tokens_BxPxW + self.fc_out(hidden_BxPxF)

    def _qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys, and values after the output projection.

        Attention's weights sum to 1, so the projection and its bias may come before it.
        """
        query, key, value = jnp.split(self.qkv(self.norm_1(x)), 3, axis=-1)
        return query, key, self.out(value)


class _Hidden(nn.Module):
    """The rest of the layer for one prompt of each image: its step to the image tokens, and the MLP's hidden layer."""

    mlp_dim: int
    activation: str
    eps: float
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(
        self, carry: None, image: _Image, prompt: _Prompt
    ) -> tuple[None, tuple[jax.Array, jax.Array]]:
        """Prompts [B, T, W] -> averages over all tokens, [B, W] of themselves and [B, F] of the hidden layer."""
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = image.tokens_BxNxW.shape[-1]
        to_prompt_BxNxT = _logits("bnw,btw->bnt", image.query_BxNxW, prompt.key)
        logits = jnp.concatenate([image.log_sum_BxN[..., None], to_prompt_BxNxT], axis=-1)
        weights = jax.nn.softmax(logits, axis=-1).astype(prompt.value.dtype)
        attended = weights[..., :1] * image.attended_BxNxW
        attended += jnp.einsum("bnt,btw->bnw", weights[..., 1:], prompt.value)
        rows = jnp.concatenate([prompt.rows, image.tokens_BxNxW + attended], axis=1)
        hidden = LayerNorm(self.eps, name="norm_2", **dtypes)(rows)
        std = (2 * width) ** -0.5
        hidden = Dense(self.mlp_dim, ("embed", "mlp"), std, name="fc_in", **dtypes)(hidden)
        hidden = activation(self.activation)(hidden)
        real = image.real_BxN
        if real is not None:
            real = jnp.pad(real, ((0, 0), (prompt.rows.shape[1], 0)), constant_values=True)[
                ..., None
            ]
        return carry, (jnp.mean(rows, 1, where=real), jnp.mean(hidden, 1, where=real))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """An einsum summed in float32, whose gradient multiplies operands of the dtype of x and y, too."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _forward(equation: str, x: jax.Array, y: jax.Array):
    return _products(equation, x, y), (x, y)


def _backward(equation: str, kept: tuple[jax.Array, jax.Array], d: jax.Array):
    x, y = kept
    inputs, out = equation.split("->")
    of_x, of_y = inputs.split(",")
    d = d.astype(x.dtype)
    return jnp.einsum(f"{out},{of_y}->{of_x}", d, y), jnp.einsum(f"{of_x},{out}->{of_y}", x, d)


_products.defvjp(_forward, _backward)


def _logits(equation: str, query: jax.Array, key: jax.Array) -> jax.Array:
    return _products(equation, query, key) * query.shape[-1] ** -0.5


def _hide(logits: jax.Array, real_BxN: jax.Array | None) -> jax.Array:
    """Logits [B, ..., N] with those of padding as low as can be."""
    if real_BxN is None:
        return logits
    real = real_BxN.reshape(len(real_BxN), *[1] * (logits.ndim - 2), -1)
    return jnp.where(real, logits, jnp.finfo(jnp.float32).min)
