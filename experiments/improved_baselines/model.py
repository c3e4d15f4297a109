"""CLIP of several views a side: projectors for the strong ones, and the heads of the losses in losses.py."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.heads import l2_normalise, normalise_pixels
from clipjax.models.layers import parameter
from experiments.improved_baselines.heads import HEADS, Projector

SIDES = ("image", "text")


class Rocket(DualEncoder):
    """A dual encoder of one weak view and A strong ones of each side.

    `image` is [B,1+A,H,W,3] and `text` [B,1+A,L], the weak view first; without strong ones, and for inference,
    [B,H,W,3] and [B,L]. The usual outputs are of the weak view. Dropout and drop path of the text tower are for strong
    texts alone. What has a batch norm runs in `whole_batch`, so it is exact under the gradient cache, and view by view.

    Attributes:
      local: hidden widths of the strong views' projectors, which have a temperature of their own; (): they share the
        heads and temperature of the weak ones.
      barlow, siamese, prototype: widths of these losses' heads, the last that of their space; (): there are none.
      prototypes: how many, for `prototype`.
      separate: whether the heads `barlow` and `siamese` of strong views have their own parameters.
      predict: whether `siamese` has predictors; a momentum copy needs none.
      momentum: a `Rocket` whose `siamese` gives the targets: a frozen part that follows this model (optim.follow).
      blend: the global similarity's share at inference; the rest is the local one's.
      init_local_scale: of the local temperature.
    """

    local: tuple[int, ...] = ()
    barlow: tuple[int, ...] = ()
    siamese: tuple[int, ...] = ()
    prototype: tuple[int, ...] = ()
    prototypes: int = 3000
    separate: bool = False
    predict: bool = True
    momentum: nn.Module | None = None
    blend: float = 1.0
    init_local_scale: float = 1 / 0.1

    def setup(self) -> None:
        super().setup()
        widths = {"local": self.local and (*self.local, self.embed_dim), "barlow": self.barlow}
        widths |= {"siamese": self.siamese, "predict": self.siamese if self.predict else ()}
        widths |= {"prototype": self.prototype}
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for head in [f"{name}_{side}" for name in HEADS if widths[name] for side in SIDES]:
            name = head.partition("_")[0]
            setattr(self, head, Projector(widths[name], *HEADS[name], **dtypes))
            if self.separate and name in ("barlow", "siamese", "predict"):
                setattr(self, f"strong_{head}", Projector(widths[name], *HEADS[name], **dtypes))
        if self.local:
            init = nn.initializers.constant(math.log(self.init_local_scale))
            self.local_logit_scale = parameter(self, "local_logit_scale", init, (), (), "float32")
        if self.prototype:
            shape, init = (self.prototypes, self.prototype[-1]), nn.initializers.normal(1.0)
            self.centres = parameter(self, "centres", init, shape, (None, None), self.param_dtype)

    def __call__(self, batch, *, train: bool = False) -> dict[str, jax.Array]:
        """Outputs of `DualEncoder` but tokens; `image_features` and `text_features` [B, 1 + A, W]."""
        seed = batch["sample_seed"] if train else None
        scale = jnp.exp(self.logit_scale)
        local_scale = jnp.exp(self.local_logit_scale) if self.local else scale
        outputs = {"logit_scale": scale, "local_logit_scale": local_scale}
        if "image" in batch:
            image = batch["image"] if batch["image"].ndim == 5 else batch["image"][:, None]
            pixels = normalise_pixels(image, self.mean, self.std)
            outputs["image_features"] = _each_view(self.image, pixels, seed)
        if "text" in batch:
            text = batch["text"] if batch["text"].ndim == 3 else batch["text"][:, None]
            parts = [_each_view(self.text, text[:, :1], None)]
            if text.shape[1] > 1:
                parts.append(_each_view(self.text, text[:, 1:], seed))
            outputs["text_features"] = jnp.concatenate(parts, axis=1)
        for side in [side for side in SIDES if side in batch]:
            weak = outputs[f"{side}_features"][:, :1]
            x = l2_normalise(getattr(self, f"{side}_head")(weak[:, 0]))
            if (
                not train and self.blend < 1
            ):  # an inner product of these is the blend of the two similarities
                h = self._local(side, weak, train)[:, 0]
                x = jnp.concatenate([self.blend**0.5 * x, (1 - self.blend) ** 0.5 * h], axis=-1)
            outputs[f"{side}_embedding"] = x
        if self.momentum is not None and (train or self.is_initializing()):
            slow = self.momentum(batch, train=train)
            outputs |= {f"momentum_{side}": slow[f"{side}_features"] for side in SIDES}
        return outputs

    def whole_batch(self, outputs, batch, *, train: bool) -> dict[str, jax.Array]:
        """Adds what losses.py needs."""
        outputs = dict(outputs)
        for side in SIDES:
            x = outputs[f"{side}_features"]
            if x.shape[1] > 1 or self.is_initializing():
                strong = x[:, 1:] if x.shape[1] > 1 else x
                outputs[f"local_{side}_embedding"] = self._local(side, strong, train)
            if self.barlow:
                outputs[f"barlow_{side}"] = self.project("barlow", side, x, train)
            if self.siamese:
                outputs[f"siamese_{side}_target"] = v = self.project("siamese", side, x, train)
                p = self.project("predict", side, v, train) if self.predict else v
                outputs[f"siamese_{side}_prediction"] = p
            if self.momentum is not None:
                slow = outputs[f"momentum_{side}"]
                target = self.momentum.project("siamese", side, slow, train)
                outputs[f"siamese_{side}_target"] = target
            if self.prototype:
                h = l2_normalise(self.project("prototype", side, x[:, :1], train)[:, 0])
                outputs[f"{side}_prototypes"] = h @ l2_normalise(self.centres).T
        return outputs

    def project(self, name: str, side: str, x_BxVxW: jax.Array, train: bool) -> jax.Array:
        """A head's outputs [B, V, P]; its norms see one view at a time."""
        weak = getattr(self, f"{name}_{side}")
        strong = getattr(self, f"strong_{name}_{side}", weak)
        if self.is_initializing():  # whatever the views, both heads have parameters
            x_BxVxW = jnp.concatenate([x_BxVxW, x_BxVxW], axis=1)
        views = range(x_BxVxW.shape[1])
        found = [(strong if v else weak)(x_BxVxW[:, v], train=train) for v in views]
        return jnp.stack(found, axis=1)

    def _local(self, side: str, x_BxAxW: jax.Array, train: bool) -> jax.Array:
        if not self.local:
            return l2_normalise(getattr(self, f"{side}_head")(x_BxAxW))
        return l2_normalise(self.project("local", side, x_BxAxW, train))


def _each_view(tower: nn.Module, x: jax.Array, seed_B: jax.Array | None) -> jax.Array:
    """Pooled features [B, V, W] of x [B, V, ...]; every view has a seed of its own."""
    batch, views = x.shape[:2]
    if seed_B is not None:
        other = jnp.arange(views, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
        seed_B = (seed_B[:, None] ^ other).reshape(-1)
    pooled, _ = tower(x.reshape(batch * views, *x.shape[2:]), sample_seed=seed_B)
    return pooled.reshape(batch, views, -1)
