"""Use a trained model: images, texts and regions in, embeddings out."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from clipjax import rules
from clipjax.convert.formats import Options
from clipjax.convert.orbax import place
from clipjax.convert.shapes import abstract_params
from clipjax.convert.source import open_source, resized
from clipjax.convert.tokenizer_option import section
from clipjax.data.tokenizers import Tokenizer
from clipjax.encode.encoder import Encoder, ImageInput
from clipjax.errors import UserError
from clipjax.imports import make_importable
from clipjax.mesh import make_mesh
from clipjax.models import make_model


class Model:
    """A loaded dual encoder, or one tower of it.

    Attributes:
      config: the run's config.
      params: the parameters.
      tokenizer: its tokenizer; None for a model without texts.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Any,
        config: ConfigDict,
        tokenizer: Tokenizer | None,
        mesh: Mesh,
    ):
        self.module, self.params, self.config, self.tokenizer = module, params, config, tokenizer
        self._encoder = Encoder(module, config, tokenizer, mesh, batch_size=64)

    def encode_image(self, images: Sequence[ImageInput]) -> np.ndarray:
        """Paths, PIL images, encoded bytes or uint8 arrays -> float32 [n, D], L2-normalised."""
        if isinstance(images, str | bytes | Path | Image.Image):
            raise UserError("encode_image takes a list of images; write encode_image([image]).")
        return self._encoder.images(self.params, images)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Strings -> float32 [n, D], L2-normalised."""
        if isinstance(texts, str):
            raise UserError("encode_text takes a list of texts; write encode_text([text]).")
        return self._encoder.texts(self.params, texts)

    def encode_regions(
        self, images: Sequence[ImageInput], boxes: Sequence[Any], how: str = "model"
    ) -> list[np.ndarray]:
        """Boxes of images -> for each image float32 [m, D], L2-normalised; see `Encoder.regions`.

        Args:
          images: as for `encode_image`.
          boxes: for each image [m, 4], x1, y1, x2, y2 as fractions of the upright image.
          how: "model", "roi_align" or "crop".
        """
        if isinstance(images, str | bytes | Path | Image.Image):
            raise UserError("encode_regions takes lists; write encode_regions([image], [boxes]).")
        return self._encoder.regions(self.params, images, boxes, how)

    def ground(
        self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Texts of images -> for each image float32 [m, 4], their boxes; see `Encoder.ground`."""
        if isinstance(images, str | bytes | Path | Image.Image) or isinstance(texts, str):
            raise UserError("ground takes lists; write ground([image], [[text]]).")
        return self._encoder.ground(self.params, images, texts)

    def encode_pixels(self, pixels_BxHxWx3: np.ndarray) -> np.ndarray:
        """Already normalised float32 pixels [n, size, size, 3] -> float32 [n, D], L2-normalised.

        A NaFlex model takes images of any sides that its patch divides, all of the same here.
        """
        pixels = np.asarray(pixels_BxHxWx3)
        if pixels.dtype == np.uint8:
            raise UserError(
                "encode_pixels takes normalised float32 pixels; give uint8 images to encode_image."
            )
        return self._encoder.run("image", self.params, pixels.astype(np.float32))

    def encode_tokens(self, ids_BxL: np.ndarray) -> np.ndarray:
        """Token ids [n, L] -> float32 [n, D], L2-normalised.

        Raises:
          UserError: they are no ids of this vocabulary, or a row has no end token where the model looks for one.
        """
        ids = np.asarray(ids_BxL)
        if self.tokenizer is None:
            raise UserError("This model has no text tower, so it cannot embed texts.")
        size = self.config.model.text.vocab_size
        whole = ids.ndim == 2 and np.issubdtype(ids.dtype, np.integer)
        if not whole or (ids.size and (ids.min() < 0 or ids.max() >= size)):
            raise UserError(f"encode_tokens takes ids [n, L], whole numbers from 0 to {size - 1}.")
        text = self.config.model.text
        if text.get("pool") == "eot":
            open_rows = np.flatnonzero((ids != text.end_token).all(axis=1))
            if open_rows.size:
                raise UserError(
                    f"Row {open_rows[0]} of the ids has no end token ({text.end_token}); this model reads a text's "
                    "embedding there."
                )
        return self._encoder.run("text", self.params, ids.astype(np.int32))

    @property
    def logit_scale(self) -> float:
        """The scale of the similarities, exponentiated; UserError if the model is one tower alone."""
        if "logit_scale" not in self.params:
            raise UserError(
                "A single tower has no logit scale: it was not trained against another one here."
            )
        return math.exp(float(self.params["logit_scale"]))

    @property
    def encoder(self) -> Encoder:
        """For evaluators, which bring the parameters themselves."""
        return self._encoder


def load(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    format: str | None = None,
    model: str | None = None,
    tokenizer: str | Mapping[str, Any] | None = None,
    size: int | None = None,
    length: int | None = None,
    root: str | Path | None = None,
) -> Model:
    """Loads a model for inference, from a run of clipjax or any format of docs/checkpoints.md.

    Parameters are read one by one and go straight to the devices of the mesh.

    Args:
      path: a run's workdir, its `checkpoints` folder, or one checkpoint in it; a file or directory of OpenAI,
        open_clip, transformers, big_vision, timm, CLIP-MoE or Long-CLIP; or `hf-hub:OWNER/NAME`.
      mesh: where to put it, default all devices as `data`.
      dtype: compute dtype, default the run's, or "auto".
      format: its format, where its content does not tell.
      model: its architecture, for files that do not say it: `ViT-B-32-quickgelu`.
      tokenizer: a tokenizer.json, a SentencePiece model or a config section, for checkpoints that come without.
      size, length: of images and texts, where they are to be others than the checkpoint's; positions are resampled.
      root: folder from which the model's import paths (`experiments.mine.models:Mine`) are meant. A run records it, so
        it is wanted only where the folder has moved.

    Raises:
      UserError: there is no checkpoint, it is of no known format, or not all of it is understood.
    """
    if root is not None:
        make_importable(Path(root).absolute())
    source = resized(open_source(path, format, Options(model, section(tokenizer))), size, length)
    config = source.config
    config.model.attention = "auto"  # which program computes it is this machine's matter
    if dtype is not None:
        config.model.dtype = dtype
    mesh = make_mesh() if mesh is None else mesh
    module = make_model(config.model)
    wanted = rules.paths(abstract_params(module, config, mesh))
    params = {
        name: place(tensor, wanted[name].sharding, wanted[name].dtype)
        for name, tensor in source.params.items()
    }
    return Model(module, rules.tree(params), config, source.tokenizer, mesh)


def load_with_encoder(path: Any) -> tuple[Model, Encoder]:
    """The model, and an encoder with batches as large as in training, so that results are the same."""
    mesh = make_mesh()
    model = load(path, mesh=mesh)
    return model, Encoder(model.module, model.config, model.tokenizer, mesh)
