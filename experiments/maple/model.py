"""MaPLe: a dual encoder with prompts in the early layers of both towers, and all classes' texts in the step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.data.tokenizers.table import token_table
from clipjax.errors import UserError
from clipjax.evals.templates import fill, read_json
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.heads import image_outputs, text_outputs
from clipjax.models.layer_inputs import DeepPrompts
from experiments.maple.prompts import Prompts


class PromptedDualEncoder(DualEncoder, kw_only=True):
    """A `DualEncoder` with `Prompts`; where the batch has `labels`, `class_centres` [C, D] are the classes' texts.

    A text begins with n words for which language prompts stand ("a photo" of "a photo of a cat."); one that is shorter
    has a NaN as its embedding. Vision prompts stand behind the patches and have no positions.

    Attributes:
      arm, prompt_count, prompt_depth: n and J of `Prompts`.
      classes: names of the C classes, or the path of a .json file with a list of them; () where nothing is trained.
      template: the sentence of a class, which begins with words for the prompts.
      tokenizer: of these sentences, the run's `config.tokenizer`.
    """

    arm: str = "coupled"
    prompt_count: int = 2
    prompt_depth: int = 9
    classes: tuple[str, ...] | str = ()
    template: str = "a photo of a {}."
    tokenizer: Mapping[str, Any] = nn.FrozenDict(kind="clip_bpe")

    needs = ("image", "labels")

    def setup(self) -> None:
        super().setup()
        depth = min(getattr(tower, "depth", 0) for tower in (self.image, self.text))
        if not 1 <= self.prompt_depth <= depth or self.prompt_count < 1:
            raise UserError(
                f"MaPLe's prompt_depth must be from 1 to {depth}, the layers of the shorter tower (a ResNet has none), "
                f"and prompt_count at least 1, not {self.prompt_depth} and {self.prompt_count}."
            )
        if getattr(self.text, "pool", None) != "eot":
            raise UserError(
                "MaPLe's language prompts stand behind a start token; the text tower must pool 'eot'."
            )
        widths = dict(text_width=self.text.width, image_width=self.image.width)
        self.prompts = Prompts(
            self.arm, self.prompt_count, self.prompt_depth, **widths, param_dtype=self.param_dtype
        )

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, Any]:
        """Encodes what the batch holds, `image`, `text`, and with `labels` the classes. See `DualEncoder`."""
        seed = batch["sample_seed"] if train else None
        text_JxnxW, image_JxnxV = self.prompts()
        outputs: dict[str, Any] = {"logit_scale": jnp.exp(self.logit_scale)}
        if "image" in batch:
            options = {} if image_JxnxV is None else self._in_image(image_JxnxV)
            outputs |= image_outputs(
                self.image, self.image_head, batch, seed, self.mean, self.std, **options
            )
        if "text" in batch:
            outputs |= self._texts(batch, text_JxnxW)
        if "labels" in batch:
            classes = {"text": jnp.asarray(self._class_ids())}
            outputs["class_centres"] = self._texts(classes, text_JxnxW)["text_embedding"]
        return outputs

    def _in_image(self, image_JxnxV: jax.Array) -> dict[str, Any]:
        """Pv_0 behind the patches, before the first norm; Pv_j in its place at the entry of layer j."""
        deep = DeepPrompts(image_JxnxV[1:], slot=-self.prompt_count, first=1)
        return {"extra_tokens": image_JxnxV[0], "deep_prompts": deep}

    def _texts(
        self, batch: Mapping[str, jax.Array], text_JxnxW: jax.Array | None, **options: Any
    ) -> dict[str, jax.Array]:
        """P_0 in place of the words behind the start token; P_j in its place at the entry of layer j."""
        if text_JxnxW is None:
            return text_outputs(self.text, self.text_head, batch, None, **options)
        n, ids = self.prompt_count, batch["text"]
        words = self.text.embed(ids)
        first = jnp.broadcast_to(text_JxnxW[0], (*ids.shape[:-1], n, words.shape[-1]))
        words = jnp.concatenate([words[..., :1, :], first, words[..., 1 + n :, :]], axis=-2)
        too_short = jnp.argmax(ids == self.text.end_token, axis=-1) <= n
        words = jnp.where(too_short[..., None, None], jnp.nan, words)
        deep = DeepPrompts(text_JxnxW[1:], slot=1, first=1)
        return text_outputs(
            self.text, self.text_head, batch, None, embeddings=words, deep_prompts=deep, **options
        )

    def _class_ids(self) -> Any:
        """int32 [C, L], the classes' sentences."""
        names = (
            read_json(self.classes, "classes") if isinstance(self.classes, str) else self.classes
        )
        if not names:
            raise UserError("MaPLe trains on classes; set config.model.classes to their names.")
        sentences = [fill(self.template, name) for name in names]
        return token_table(self.tokenizer, sentences, self.text.length)
