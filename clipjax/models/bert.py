"""BERT text tower (Devlin et al. 2019) and its like: RoBERTa, XLM-RoBERTa, sentence encoders made from them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clipjax.errors import UserError
from clipjax.models.attention import dot_product_attention, head_size
from clipjax.models.layers import Dense, LayerNorm, activation, parameter
from clipjax.models.lookup import lookup
from clipjax.models.options import lora
from clipjax.registry import nearest

INIT_STD = 0.02
POOLS = ("mean", "class", "pooler")


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens of `mask_BxL`. Settings as in `Bert`."""

    heads: int
    attention_impl: str = "einsum"
    quantize: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Maps [B, L, W] to [B, L, W]; keys where the mask is False get no weight."""
        batch, length, width = x_BxLxW.shape

        how = dict(quantize=self.quantize, dtype=self.dtype, param_dtype=self.param_dtype)

        def project(name: str) -> jax.Array:
            axes, adapter = ("embed", "heads"), lora(self, name)
            y = Dense(width, axes, INIT_STD, lora=adapter, name=name, **how)(x_BxLxW)
            return y.reshape(batch, length, self.heads, width // self.heads)

        y_BxLxHxK = dot_product_attention(
            project("query"),
            project("key"),
            project("value"),
            mask_BxL[:, None, None, :],
            implementation=self.attention_impl,
        )
        y_BxLxW = y_BxLxHxK.reshape(batch, length, width)
        out = Dense(width, ("heads", "embed"), INIT_STD, lora=lora(self, "out"), name="out", **how)
        return out(y_BxLxW)


class Layer(nn.Module):
    """Attention and MLP, each added to its input and then normalised. Settings as in `Bert`."""

    heads: int
    mlp_dim: int
    norm_epsilon: float
    activation: str = "gelu"
    attention_impl: str = "einsum"
    quantize: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Maps [B, L, W] to [B, L, W]."""
        width = x_BxLxW.shape[-1]
        how = dict(quantize=self.quantize, dtype=self.dtype, param_dtype=self.param_dtype)
        attention = SelfAttention(
            self.heads,
            self.attention_impl,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_targets=self.lora_targets,
            name="attention",
            **how,
        )
        x = self._norm("attention_norm")(x_BxLxW + attention(x_BxLxW, mask_BxL))
        adapter = lora(self, "fc_in")
        y = Dense(self.mlp_dim, ("embed", "mlp"), INIT_STD, lora=adapter, name="mlp_in", **how)(x)
        y = activation(self.activation)(y)
        adapter = lora(self, "fc_out")
        y = Dense(width, ("mlp", "embed"), INIT_STD, lora=adapter, name="mlp_out", **how)(y)
        return self._norm("mlp_norm")(x + y)

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.norm_epsilon, "float32", self.param_dtype, name=name)


class Bert(nn.Module):
    """Post-norm encoder with learned positions; the defaults are all-MiniLM-L6-v2, 22.6 M parameters.

    Token ids equal to `pad_id` are masked out of attention and pooling. Every token has type 0, as
    single sentences do. Layers are unrolled: on a CPU a scan over them costs a fifth of the speed.

    Attributes:
        length: tokens of the texts that the pipeline makes, at most `max_positions - position_offset`.
        max_positions: rows of the position table.
        position_offset: 0 counts positions from the start of the row (BERT). RoBERTa and XLM-R count
            tokens that are not padding, and the first one has position `pad_id + 1`: give that.
        norm_epsilon: of every layer norm.
        activation: of the MLPs, a name in clipjax/models/activations.py.
        pool: "mean" over the tokens that are not padding, "class" (the first token), or "pooler", a
            dense layer and tanh over the first token (BERT's own, for its next-sentence task).
        attention_impl, quantize: see clipjax/models/attention.py and quantize.py.
        lora_rank, lora_alpha, lora_targets: see `BlockOptions`; "fc_in" and "fc_out" are here the
            parameters `mlp_in` and `mlp_out`, and there is no "fc_gate".
        dtype: of the matrix products; norms, softmax and outputs are float32.
    """

    length: int = 128
    vocab_size: int = 30522
    width: int = 384
    depth: int = 6
    heads: int = 12
    mlp_dim: int = 1536
    max_positions: int = 512
    position_offset: int = 0
    type_vocab: int = 2
    pad_id: int = 0
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    pool: str = "mean"
    attention_impl: str = "einsum"
    quantize: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")
    dtype: str = "float32"
    param_dtype: str = "float32"

    def setup(self) -> None:
        init, shape = nn.initializers.normal(INIT_STD), (self.vocab_size, self.width)
        self.token_embedding = parameter(
            self, "token_embedding", init, shape, ("vocab", "embed"), self.param_dtype
        )

    @property
    def sees_padding(self) -> bool:
        """Padding is masked."""
        return False

    def embed(self, text_BxL: jax.Array) -> jax.Array:
        """Token ids -> their embeddings [B, L, W] in the parameters' dtype, without positions."""
        return lookup(self.token_embedding, text_BxL)

    @nn.compact
    def __call__(
        self,
        text_BxL: jax.Array,
        *,
        mask: jax.Array | None = None,
        sample_seed: jax.Array | None = None,
        embeddings: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds token ids.

        Args:
            text_BxL: int32; L at most `max_positions - position_offset`. With `embeddings` they
                only say which tokens are padding.
            mask: bool [B, L], False where nobody may attend, on top of the padding.
            sample_seed: not used; every tower takes it.
            embeddings: [B, L, W] in place of `embed(text_BxL)`.

        Returns:
            (pooled [B, W] and tokens [B, L, W]), both float32. A row of nothing but padding has a
            mean of zeros.

        Raises:
            UserError: if L is too large, `heads` does not divide `width`, or there is no such `pool`
                or `activation`.
        """
        del sample_seed
        self._check(text_BxL.shape[1])
        not_padding_BxL = text_BxL != self.pad_id
        mask_BxL = not_padding_BxL if mask is None else not_padding_BxL & mask
        if embeddings is None:
            embeddings = self.embed(text_BxL)
        if embeddings.shape != (*text_BxL.shape, self.width):
            raise UserError(
                f"The text tower takes embeddings {[*text_BxL.shape, self.width]}, "
                f"not {list(embeddings.shape)}."
            )
        x = self._embed(embeddings, not_padding_BxL)
        adapters = dict(
            lora_rank=self.lora_rank, lora_alpha=self.lora_alpha, lora_targets=self.lora_targets
        )
        how = adapters | dict(
            quantize=self.quantize, dtype=self.dtype, param_dtype=self.param_dtype
        )
        for index in range(self.depth):
            layer = Layer(
                self.heads,
                self.mlp_dim,
                self.norm_epsilon,
                self.activation,
                self.attention_impl,
                name=f"layer_{index}",
                **how,
            )
            x = layer(x, mask_BxL)
        return self._pool(x, mask_BxL), x

    def _embed(self, tokens_BxLxW: jax.Array, not_padding_BxL: jax.Array) -> jax.Array:
        """Token, position and type embeddings, summed and normalised: float32 [B, L, W]."""

        def table(name: str, rows: int) -> jax.Array:
            init, shape = nn.initializers.normal(INIT_STD), (rows, self.width)
            return parameter(self, name, init, shape, (None, "embed"), self.param_dtype)

        positions = table("position_embedding", self.max_positions)
        if self.position_offset:
            count_BxL = jnp.cumsum(not_padding_BxL, axis=1) * not_padding_BxL
            positions = lookup(positions, self.position_offset - 1 + count_BxL)
        else:
            positions = positions[: tokens_BxLxW.shape[1]]
        types = table("type_embedding", self.type_vocab)[0]
        x = sum(part.astype(jnp.float32) for part in (tokens_BxLxW, positions, types))
        return LayerNorm(self.norm_epsilon, "float32", self.param_dtype, name="embedding_norm")(x)

    def _pool(self, x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """One float32 vector a row, [B, W]; `mask_BxL` says which tokens count."""
        if self.pool == "mean":
            weight_BxLx1 = mask_BxL[..., None].astype(jnp.float32)
            count_Bx1 = jnp.maximum(weight_BxLx1.sum(axis=1), 1)
            return (x_BxLxW * weight_BxLx1).sum(axis=1) / count_Bx1
        first = x_BxLxW[:, 0]
        if self.pool == "class":
            return first
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = Dense(self.width, ("embed", None), INIT_STD, name="pooler", **dtypes)(first)
        return jnp.tanh(y.astype(jnp.float32))

    def _check(self, length: int) -> None:
        """Refuses settings and texts that do not fit together."""
        head_size(self.width, self.heads)
        if self.pool not in POOLS:
            raise UserError(
                f"The text tower's pool cannot be {self.pool!r}{nearest(self.pool, POOLS)}."
            )
        most = self.max_positions - self.position_offset
        if length > most:
            raise UserError(f"The text tower takes at most {most} tokens, not {length}.")
