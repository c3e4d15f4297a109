"""Modality inversion: pseudo-tokens that a frozen encoder maps onto a feature of the other modality.

Mistretta et al., ICLR 2025, arXiv 2502.04263. `OTI`: image features to text features, `OVI`: text features to image's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipjax.errors import UserError
from clipjax.evals.templates import fill, load_templates
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.heads import image_outputs, l2_normalise, text_outputs


def cosine_loss(feature_BxD: jax.Array, target_BxD: jax.Array) -> jax.Array:
    """1 - cos(feature, target), summed over the samples so that none depends on the batch it is in; float32 []."""
    cosine_B = jnp.sum(l2_normalise(feature_BxD) * l2_normalise(target_BxD), axis=-1)
    return jnp.sum(1.0 - cosine_B)


def optimise(
    feature: Callable[[jax.Array], jax.Array],
    start_BxRxW: jax.Array,
    target_BxD: jax.Array,
    steps: Sequence[int],
    lr: float = 0.02,
    weight_decay: float = 0.01,
) -> jax.Array:
    """Pseudo-tokens after each of T ascending numbers of AdamW steps at a constant rate, float32 [T, B, R, W].

    `feature` is the frozen encoder, [B, R, W] -> [B, D]; it runs forward and backward steps[-1] times.
    """
    optimizer = optax.adamw(lr, weight_decay=weight_decay)
    gradient = jax.grad(lambda v: cosine_loss(feature(v), target_BxD))

    def step(_, carry):
        v, state = carry
        updates, state = optimizer.update(gradient(v), state, v)
        return optax.apply_updates(v, updates), state

    def several(carry, count):
        carry = jax.lax.fori_loop(0, count, step, carry)
        return carry, carry[0]

    start = start_BxRxW, optimizer.init(start_BxRxW)
    return jax.lax.scan(several, start, np.diff(steps, prepend=0))[1]


def text_feature(module: DualEncoder, v_BxRxW: jax.Array, ids_L: Any, places_R: Any) -> jax.Array:
    """g(template, v): the text embedding [B, D] of the ids [L], with v for the word embeddings at the places [R]."""
    ids_BxL = jnp.broadcast_to(ids_L, (len(v_BxRxW), len(ids_L)))
    words_BxLxW = module.text.embed(ids_BxL)
    words_BxLxW = words_BxLxW.at[:, places_R].set(v_BxRxW.astype(words_BxLxW.dtype))
    batch = {"text": ids_BxL}
    outputs = text_outputs(module.text, module.text_head, batch, None, embeddings=words_BxLxW)
    return outputs["text_embedding"]


def image_feature(module: DualEncoder, u_BxPxW: jax.Array) -> jax.Array:
    """f(u): the image embedding [B, D] of P pseudo-patches, spread over the N places in place of patch embeddings."""
    slots_N = patch_slots(u_BxPxW.shape[1], module.image.grid**2)
    how = dict(embeddings=u_BxPxW[:, slots_N])
    outputs = image_outputs(
        module.image, module.image_head, {}, None, module.mean, module.std, **how
    )
    return outputs["image_embedding"]


def patch_slots(patches: int, grid: int) -> np.ndarray:
    """Which of P pseudo-patches stands in each of N places, int [N]: floor(j P / N), nearest interpolation."""
    return np.arange(grid) * patches // grid


@dataclass
class Inversion:
    """Called, carries features over to the other modality: (params, [N, D]) -> float32 [N, T, D], L2-normalised.

    Attributes:
      encoder: the model's, whose module is a `DualEncoder`.
      steps: T ascending numbers of steps after which the features are wanted.
      lr, weight_decay: of AdamW.
      batch_size: queries at a time.
      seed: the pseudo-tokens of query i begin as N(0, 0.02^2) noise of (seed, i) alone.
    """

    encoder: Any
    steps: Sequence[int] = ()
    lr: float = 0.02
    weight_decay: float = 0.01
    batch_size: int = 64
    seed: int = 42

    def __post_init__(self):
        if not self.steps or list(self.steps) != sorted({max(s, 0) for s in self.steps}):
            raise UserError(f"The steps of an inversion must ascend from 0, not {self.steps}.")
        if not isinstance(self.encoder.module, DualEncoder):
            kind = type(self.encoder.module).__name__
            raise UserError(f"Inversion needs the two towers of a DualEncoder, not a {kind}.")
        self._program = self.encoder.program(self._invert)

    def __call__(self, params: Any, target_NxD: np.ndarray) -> np.ndarray:
        """See the class."""
        batch = {"target": target_NxD, "number": np.arange(len(target_NxD), dtype=np.uint32)}
        size = self.encoder.whole(min(self.batch_size, len(target_NxD)))
        return self.encoder.apply(self._program, params, batch, size)

    def start(self, number_B: jax.Array) -> jax.Array:
        """Pseudo-tokens of the queries of these numbers before the first step, float32 [B, R, W]."""
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(self.seed)))(number_B)
        return 0.02 * jax.vmap(lambda key: jax.random.normal(key, self.shape))(keys)

    def feature(self, params: Any, v_BxRxW: jax.Array) -> jax.Array:
        """What the encoder, whose parameters are frozen, makes of pseudo-tokens: float32 [B, D], L2-normalised."""
        frozen = {"params": jax.lax.stop_gradient(params)}
        return self.encoder.module.apply(frozen, v_BxRxW, *self.given, method=self.method)

    def _invert(self, params: Any, batch: Any) -> jax.Array:
        feature, how = partial(self.feature, params), (self.steps, self.lr, self.weight_decay)
        v_TxBxRxW = optimise(feature, self.start(batch["number"]), batch["target"], *how)
        return jnp.swapaxes(jax.lax.map(feature, v_TxBxRxW), 0, 1)


@dataclass
class OTI(Inversion):
    """Optimisation-based textual inversion: `tokens` pseudo-words, R, in the sentence `template`."""

    steps: Sequence[int] = (150,)
    tokens: int = 1
    template: str = "a photo of {}"
    method = staticmethod(text_feature)

    def __post_init__(self):
        super().__post_init__()
        load_templates([self.template])
        # Two words tell where the pseudo-words stand, whatever a tokenizer puts before them and drops.
        texts = [fill(self.template, " ".join([word] * self.tokens)) for word in "xz"]
        (ids_L, other_L), cut = self.encoder.tokenizer.encode_rows(texts)
        places_R = np.flatnonzero(ids_L != other_L)
        if cut.any() or len(places_R) != self.tokens:
            raise UserError(
                f"The tokenizer gives no single token to each of {self.tokens} placeholders in {self.template!r}, or "
                "has no room for them; give another template."
            )
        self.given = ids_L, places_R
        self.shape = self.tokens, self.encoder.module.text.width


@dataclass
class OVI(Inversion):
    """Optimisation-based visual inversion: `patches` pseudo-patches, P."""

    steps: Sequence[int] = (1000,)
    patches: int = 1
    method, given = staticmethod(image_feature), ()

    def __post_init__(self):
        super().__post_init__()
        tower = self.encoder.module.image
        if not 1 <= self.patches <= tower.grid**2:
            raise UserError(f"patches must be from 1 to {tower.grid**2}, not {self.patches}.")
        self.shape = self.patches, tower.width
