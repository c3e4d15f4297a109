"""Use a trained model: pictures and texts in, embeddings out."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from clipjax import checkpoint
from clipjax.config import from_json, to_json
from clipjax.data.bad import BadRecord
from clipjax.data.images import decode, fit, flatten
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError
from clipjax.mesh import batch_sharding, batch_shards, make_mesh, parameter_shardings, replicated
from clipjax.models import example_batch, make_model, matmul_precision

Picture = Image.Image | np.ndarray | bytes | str | Path


class Encoder:
    """Embeds lists of any length in batches of one shape, so that each tower compiles once.

    Args:
      model: a dual encoder.
      config: the run's config: `model` and `preprocess` are read.
      tokenizer: makes ids of texts.
      mesh: where the parameters live; batches are split over it.
      batch_size: pictures or texts at a time, rounded up to what the mesh divides.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        mesh: Mesh,
        batch_size: int = 256,
    ):
        self._mesh, self._tokenizer = mesh, tokenizer
        parts = batch_shards(mesh)
        self._batch = math.ceil(batch_size / parts) * parts
        self._size = config["model"]["image"]["size"]
        self._preprocess = dict(config["preprocess"])
        self.width = config["model"]["embed_dim"]

        def encode(field: str) -> Callable[[Any, jax.Array], jax.Array]:
            def apply(params: Any, array: jax.Array) -> jax.Array:
                with matmul_precision(config["model"]["dtype"]):
                    return model.apply({"params": params}, {field: array})[f"{field}_embedding"]

            return jax.jit(apply, out_shardings=replicated(mesh))

        self._encode = {field: encode(field) for field in ("image", "text")}

    def images(self, params: Any, images: Sequence[Picture]) -> np.ndarray:
        """Pictures (encoded bytes, paths, PIL images or uint8 arrays) -> float32 [n, D], L2-normalised.

        Raises:
          UserError: a picture cannot be read; its place in the list and the reason are named.
        """
        with ThreadPoolExecutor() as pool:
            pixels = list(pool.map(self.pixels, images, range(len(images))))
        return self.run(
            "image",
            params,
            np.stack(pixels) if pixels else np.zeros((0, self._size, self._size, 3)),
        )

    def texts(self, params: Any, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 [n, D], L2-normalised.

        Raises:
          UserError: a text is empty; its place in the list is named.
        """
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"Text {i} is empty; there is nothing to embed.")
        return self.run("text", params, self._tokenizer(texts))

    def pixels(self, image: Picture, place: int = 0) -> np.ndarray:
        """One picture as the model sees it before normalisation, uint8 [size, size, 3]."""
        name = f"Image {place}"
        try:
            if isinstance(image, str | Path):
                name = f"Image {str(image)!r}"
                image = Path(image).read_bytes()
            return fit(flatten(decode(image)), self._size, **self._preprocess)
        except FileNotFoundError as error:
            raise UserError(f"{name} does not exist.") from error
        except (BadRecord, OSError) as error:
            raise UserError(f"{name} cannot be used: {error}.") from error

    def run(self, field: str, params: Any, array: np.ndarray) -> np.ndarray:
        """Embeds rows of `image` (uint8, or normalised float32) or `text` ids; the last batch is padded."""
        parts = []
        with jax.set_mesh(self._mesh):
            for start in range(0, len(array), self._batch):
                rows = array[start : start + self._batch]
                count = len(rows)
                padding = [(0, self._batch - count)] + [(0, 0)] * (array.ndim - 1)
                rows = np.pad(rows, padding)
                # Of several processes, each has all rows and puts those of its own devices.
                rows_on_device = jax.make_array_from_callback(
                    rows.shape, batch_sharding(self._mesh), rows.__getitem__
                )
                parts.append((self._encode[field](params, rows_on_device), count))
        if not parts:
            return np.zeros((0, self.width), np.float32)
        return np.concatenate([np.asarray(part)[:n] for part, n in parts])


class Model:
    """A loaded dual encoder. `config` is the run's config, `params` the parameters, `tokenizer` its tokenizer."""

    def __init__(
        self, module: nn.Module, params: Any, config: ConfigDict, tokenizer: Tokenizer, mesh: Mesh
    ):
        self.module, self.params, self.config, self.tokenizer = module, params, config, tokenizer
        self._encoder = Encoder(module, config, tokenizer, mesh, batch_size=64)

    def encode_image(self, images: Sequence[Picture]) -> np.ndarray:
        """Paths, PIL images, encoded bytes or uint8 arrays -> float32 [n, D], L2-normalised."""
        if isinstance(images, str | bytes | Path | Image.Image):
            raise UserError("encode_image takes a list of pictures; write encode_image([picture]).")
        return self._encoder.images(self.params, images)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Strings -> float32 [n, D], L2-normalised."""
        if isinstance(texts, str):
            raise UserError("encode_text takes a list of texts; write encode_text([text]).")
        return self._encoder.texts(self.params, texts)

    def encode_pixels(self, pixels_BxHxWx3: np.ndarray) -> np.ndarray:
        """Already normalised float32 pixels [n, size, size, 3] -> float32 [n, D], L2-normalised."""
        pixels = np.asarray(pixels_BxHxWx3)
        if pixels.dtype == np.uint8:
            raise UserError(
                "encode_pixels takes normalised float32 pixels; give uint8 pictures to encode_image."
            )
        return self._encoder.run("image", self.params, pixels.astype(np.float32))

    def encode_tokens(self, ids_BxL: np.ndarray) -> np.ndarray:
        """Token ids [n, L] -> float32 [n, D], L2-normalised.

        Raises:
          UserError: they are no ids of this vocabulary, or a row has no end token where the model looks for one.
        """
        ids = np.asarray(ids_BxL)
        size = self.tokenizer.vocab_size
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
        """The scale of the similarities, exponentiated."""
        return math.exp(float(self.params["logit_scale"]))

    @property
    def encoder(self) -> Encoder:
        """For evaluators, which bring the parameters themselves."""
        return self._encoder


def load(path: str | Path, *, mesh: Mesh | None = None, dtype: str | None = None) -> Model:
    """Loads a model for inference.

    Args:
      path: a run's workdir, its `checkpoints` folder, or one checkpoint in it.
      mesh: where to put it, default all devices as `data`.
      dtype: compute dtype, default the run's.

    Raises:
      UserError: there is no checkpoint, it is of another kind, or it does not fit its own config.
    """
    folder = checkpoint.find(path)
    meta, packed = checkpoint.read_meta(folder)
    config = from_json(to_json(meta["config"]))
    config.model.attention = "auto"  # which program computes it is this machine's matter
    if dtype is not None:
        config.model.dtype = dtype
    mesh = make_mesh() if mesh is None else mesh
    module = make_model(config.model)
    params = checkpoint.read_params(folder, abstract_params(module, config.model, mesh))
    return Model(module, params, config, checkpoint.unpack_tokenizer(packed), mesh)


def abstract_params(module: nn.Module, config: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model's parameters."""
    boxed = jax.eval_shape(module.init, jax.random.key(0), example_batch(config))["params"]
    shardings = parameter_shardings(boxed, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
    )
