"""The transformer text tower."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layer_inputs import DeepPrompts, Taps
from clipjax.models.layers import LayerNorm, parameter
from clipjax.models.lookup import lookup
from clipjax.models.options import block_options
from clipjax.models.pooling import MapPool, token_at
from clipjax.models.transformer import Transformer
from clipjax.registry import nearest


class TextTransformer(nn.Module):
    """Token and position embeddings, pre-norm blocks, final norm, pooling.

    Attributes:
      length: number of tokens L.
      attention: "causal" (CLIP) or "full" (SigLIP, CLIPA).
      pool: "eot" (first end-of-text token), "first", "last" (last position, padding or not), "map", or "class".
      end_token: id of the end-of-text token, for pool="eot".
      final_norm: "tokens" normalises all tokens, then pools; "pooled" pools first (CoCa), and leaves the tokens as the
        blocks made them. What is pooled is the same, but for pool="map".
      class_token: whether a learned token is appended to the text (Yu et al. 2022, CoCa), for pool="class".
      pad_id: with a class token, these tokens are not seen.
      class_mask: with a class token, "aligned" hides the padding; "shifted" hides what stands one place behind it: the
        first padding token is seen, and a class token only behind a text that fills all places. CoCa's released weights
        were trained so (open_clip, `TextTransformer._build_additive_mask`).
      moe_layers, remat, unroll: see `Transformer`.
      dropout, drop_path: as there; only where a `sample_seed` is given, so a model that wants a text without noise, or
        the same text with and without, calls the tower with None for the one.
      All others: see `BlockOptions`.
    """

    length: int = 77
    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    attention: str = "causal"
    pool: str = "eot"
    end_token: int = 49407
    activation: str = "gelu"
    layer_scale: float | None = None
    qk_norm: bool = False
    eps: float = 1e-5
    remat: str = "none"
    unroll: int = 1
    attention_impl: str = "einsum"
    quantize: str | None = None
    final_norm: str = "tokens"
    class_token: bool = False
    pad_id: int = 0
    class_mask: str = "shifted"
    experts: int = 0
    experts_per_token: int = 2
    moe_layers: int = 0
    dropout: float = 0.0
    drop_path: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")
    dtype: str = "float32"
    param_dtype: str = "float32"

    def setup(self) -> None:
        self.token_embedding = parameter(
            self,
            "token_embedding",
            nn.initializers.normal(0.02),
            (self.vocab_size, self.width),
            ("vocab", "embed"),
            self.param_dtype,
        )
        self.position_embedding = parameter(
            self,
            "position_embedding",
            nn.initializers.normal(0.01),
            (self.length + self.class_token, self.width),
            (None, "embed"),
            self.param_dtype,
        )

    @property
    def sees_padding(self) -> bool:
        """Whether what is pooled depends on the tokens behind a text's end."""
        pooled_before = self.pool in ("eot", "first") and not self.class_token
        return self.attention != "causal" or not pooled_before

    def embed(self, text_BxL: jax.Array) -> jax.Array:
        """Token ids -> their embeddings [B, L, W] in the parameters' dtype, without positions.

        With changes, they can be given to the tower in place of the ids' own; here the first words are learned:

        >>> words = tower.embed(ids)  # "a photo of a cat." -> [B, L, W]
        >>> words = jnp.concatenate([words[:, :1], prompts_BxnxW, words[:, 1 + n :]], axis=1)
        >>> pooled, tokens = tower(ids, embeddings=words)
        """
        return lookup(self.token_embedding, text_BxL)

    @nn.compact
    def __call__(
        self,
        text_BxL: jax.Array | None,
        *,
        mask: jax.Array | None = None,
        sample_seed: jax.Array | None = None,
        embeddings: jax.Array | None = None,
        deep_prompts: DeepPrompts | None = None,
        taps: Taps | None = None,
    ) -> tuple[jax.Array, ...]:
        """Encodes token ids.

        Args:
          text_BxL: int32 ids, L at most `length`. With `embeddings` they only say where the end-of-text token is, and
            which are padding; None if the tower's `pool` and `class_token` do not need to know.
          mask: bool [B, L], False where nobody may attend; None: everything is seen, as CLIP and SigLIP do.
          sample_seed: uint32 [B], while training, for `dropout` and `drop_path`.
          embeddings: [B, L, W] in place of `embed(text_BxL)`; positions are added to them as to these.
          deep_prompts: tokens that replace others at the entry of layers.
          taps: intermediate results to return.

        Returns:
          pooled [B, W] and tokens [B, L, W] after the final norm; the class token is not among them. With `taps` also
          the dict that `Taps` describes.
        """
        if embeddings is None:
            embeddings = self.embed(text_BxL)
        length = embeddings.shape[1]
        self._check(embeddings.shape, text_BxL)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        position = self.position_embedding
        x = (embeddings + position[:length]).astype(self.dtype)
        if self.class_token:
            init, shape = nn.initializers.normal(0.01), (1, self.width)
            token = parameter(self, "class_token", init, shape, (None, "embed"), self.param_dtype)
            token = (token + position[length : length + 1]).astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(token, (len(x), *shape))], axis=1)
            mask = self._class_mask(text_BxL, mask)
        mlp_dim = round(self.mlp_ratio * self.width)
        options = block_options(self, mlp_dim=mlp_dim, causal=self.attention == "causal")
        blocks = Transformer(
            self.depth, options, self.remat, self.unroll, self.moe_layers, name="transformer"
        )
        x = blocks(
            x,
            None if mask is None else mask[:, None, None, :],
            sample_seed=sample_seed,
            deep_prompts=deep_prompts,
            taps=taps,
        )
        x, found = (x, None) if taps is None else x
        norm = LayerNorm(self.eps, name="norm_post", **dtypes)
        if self.final_norm == "tokens":
            x = norm(x)
        tokens = x[:, :length]
        if self.pool == "eot":
            pooled = token_at(x, jnp.argmax(text_BxL == self.end_token, axis=1))
        elif self.pool == "class":
            pooled = x[:, -1]
        elif self.pool in ("first", "last"):
            pooled = tokens[:, 0 if self.pool == "first" else -1]
        else:
            pool = MapPool(self.heads, mlp_dim, self.activation, self.eps, name="pool", **dtypes)
            pooled = pool(x, mask)
        if self.final_norm == "pooled":
            pooled = norm(pooled)
        return (pooled, tokens) if found is None else (pooled, tokens, found)

    def _class_mask(self, text_BxL: jax.Array, mask_BxL: jax.Array | None) -> jax.Array:
        """Which tokens are seen, bool [B, L + 1]."""
        before = self.class_mask == "shifted"
        real = text_BxL != self.pad_id
        seen = jnp.pad(real, ((0, 0), (1, 0) if before else (0, 1)), constant_values=True)
        if mask_BxL is None:
            return seen
        return seen & jnp.pad(mask_BxL, ((0, 0), (0, 1)), constant_values=True)

    def _check(self, shape: tuple[int, ...], text_BxL: jax.Array | None) -> None:
        """Refuses settings and texts that do not fit together; `shape` is that of the embeddings."""
        length = shape[1]
        if shape[2:] != (self.width,) or (text_BxL is not None and text_BxL.shape != shape[:2]):
            ids = "" if text_BxL is None else f" for ids {list(text_BxL.shape)}"
            raise UserError(
                f"The text tower takes embeddings [B, L, {self.width}], not {list(shape)}{ids}."
            )
        if text_BxL is None and (self.pool == "eot" or self.class_token):
            raise UserError(
                "This text tower needs the ids beside the embeddings, to know where a text ends; give both."
            )
        for field, valid in {
            "attention": ("causal", "full"),
            "pool": ("eot", "first", "last", "map", "class"),
            "final_norm": ("tokens", "pooled"),
            "class_mask": ("shifted", "aligned"),
        }.items():
            value = getattr(self, field)
            if value not in valid:
                raise UserError(
                    f"The text tower's {field} cannot be {value!r}{nearest(value, valid)}."
                )
        if self.pool == "class" and not self.class_token:
            raise UserError("The text tower's pool='class' needs class_token=True.")
        if length > self.length:
            raise UserError(f"The text tower takes at most {self.length} tokens, not {length}.")
