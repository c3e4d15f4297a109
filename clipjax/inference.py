"""Use a trained model: pictures and texts in, embeddings out."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from clipjax import rules
from clipjax.convert.formats import Options
from clipjax.convert.orbax import place
from clipjax.convert.source import open_source, resized
from clipjax.convert.tokenizer_option import section
from clipjax.data import naflex
from clipjax.data.bad import BadRecord
from clipjax.data.images import decode, fit, flatten
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError
from clipjax.mesh import batch_sharding, batch_shards, make_mesh, parameter_shardings, replicated
from clipjax.models import example_batch, make_model, matmul_precision

Picture = Image.Image | np.ndarray | bytes | str | Path


class Patches(NamedTuple):
    """Pictures of a NaFlex model: `patches` uint8 [..., N, 3 * p * p], `shape` int32 [..., 2] (their rows, columns)."""

    patches: np.ndarray
    shape: np.ndarray | tuple[int, int]


class Encoder:
    """Embeds lists of any length in batches of one shape, so that each tower compiles once.

    Args:
      model: a dual encoder, or one of its towers alone.
      config: the run's config: `model` and `preprocess` are read.
      tokenizer: makes ids of texts; None for a model without texts.
      mesh: where the parameters live; batches are split over it.
      batch_size: pictures or texts at a time, rounded up to what the mesh divides.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        tokenizer: Tokenizer | None,
        mesh: Mesh,
        batch_size: int = 256,
    ):
        self._mesh, self._tokenizer = mesh, tokenizer
        parts = batch_shards(mesh)
        self._batch = math.ceil(batch_size / parts) * parts
        self._image = dict(config["model"]["image"]) if "image" in config["model"] else None
        self._preprocess = dict(config["preprocess"])
        self.width = config["model"]["embed_dim"]

        def encode(field: str) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
            def apply(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
                with matmul_precision(config["model"]["dtype"]):
                    return model.apply({"params": params}, batch)[f"{field}_embedding"]

            return jax.jit(apply, out_shardings=replicated(mesh))

        towers = [field for field in ("image", "text") if field in config["model"]]
        self._encode = {field: encode(field) for field in towers}

    def images(self, params: Any, images: Sequence[Picture]) -> np.ndarray:
        """Pictures (encoded bytes, paths, PIL images or uint8 arrays) -> float32 [n, D], L2-normalised.

        Raises:
          UserError: a picture cannot be read; its place in the list and the reason are named.
        """
        self._check("image")
        with ThreadPoolExecutor() as pool:
            pixels = list(pool.map(self.pixels, images, range(len(images))))
        return self.run("image", params, self.stack(pixels))

    def stack(self, pictures: Sequence[np.ndarray | Patches]) -> np.ndarray | Patches:
        """What `pixels` made of several pictures, as one batch for `run`."""
        if self._naflex:
            patches = [p.patches for p in pictures]
            shapes = np.array([p.shape for p in pictures], np.int32).reshape(-1, 2)
            empty = np.zeros((0, self._max_patches, 3 * self._image["patch"] ** 2), np.uint8)
            return Patches(np.stack(patches) if patches else empty, shapes)
        size = self._image["size"]
        return np.stack(pictures) if pictures else np.zeros((0, size, size, 3), np.uint8)

    @property
    def _naflex(self) -> bool:
        return self._image is not None and self._image.get("positions") == "naflex"

    @property
    def _max_patches(self) -> int:
        return (self._image["size"] // self._image["patch"]) ** 2

    def _check(self, field: str) -> None:
        if field not in self._encode:
            what = {"image": "pictures", "text": "texts"}[field]
            raise UserError(f"This model has no {field} tower, so it cannot embed {what}.")

    def texts(self, params: Any, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 [n, D], L2-normalised.

        Raises:
          UserError: a text is empty; its place in the list is named.
        """
        self._check("text")
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"Text {i} is empty; there is nothing to embed.")
        return self.run("text", params, self._tokenizer(texts))

    def pixels(self, image: Picture, place: int = 0) -> np.ndarray | Patches:
        """One picture as the model sees it before normalisation, uint8 [size, size, 3], or patches for a NaFlex."""
        self._check("image")
        name = f"Image {place}"
        try:
            if isinstance(image, str | Path):
                name = f"Image {str(image)!r}"
                image = Path(image).read_bytes()
            picture = flatten(decode(image))
            if self._naflex:
                interpolation = self._preprocess["interpolation"]
                return Patches(
                    *naflex.patches(picture, self._image["patch"], self._max_patches, interpolation)
                )
            return fit(picture, self._image["size"], **self._preprocess)
        except FileNotFoundError as error:
            raise UserError(f"{name} does not exist.") from error
        except (BadRecord, OSError) as error:
            raise UserError(f"{name} cannot be used: {error}.") from error

    def run(self, field: str, params: Any, array: np.ndarray | Patches) -> np.ndarray:
        """Embeds rows of `image` (uint8, or normalised float32) or `text` ids; the last batch is padded."""
        self._check(field)
        batch = {field: array}
        if isinstance(array, Patches):
            batch = {"image": array.patches, "image_shape": array.shape}
        total, parts = len(batch[field]), []
        with jax.set_mesh(self._mesh):
            for start in range(0, total, self._batch):
                count = min(self._batch, total - start)
                rows = {k: self._rows(x[start : start + count]) for k, x in batch.items()}
                parts.append((self._encode[field](params, rows), count))
        if not parts:
            return np.zeros((0, self.width), np.float32)
        return np.concatenate([np.asarray(part)[:n] for part, n in parts])

    def _rows(self, rows: np.ndarray) -> jax.Array:
        """A padded batch on the mesh; of several processes, each has all rows and puts those of its own devices."""
        padding = [(0, self._batch - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        rows = np.pad(rows, padding, mode="edge")
        return jax.make_array_from_callback(
            rows.shape, batch_sharding(self._mesh), rows.__getitem__
        )


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
        """Already normalised float32 pixels [n, size, size, 3] -> float32 [n, D], L2-normalised.

        A NaFlex model takes pictures of any sides that its patch divides, all of the same here.
        """
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
      size, length: of pictures and texts, where they are to be others than the checkpoint's; positions are resampled.

    Raises:
      UserError: there is no checkpoint, it is of no known format, or not all of it is understood.
    """
    source = resized(open_source(path, format, Options(model, section(tokenizer))), size, length)
    config = source.config
    config.model.attention = "auto"  # which program computes it is this machine's matter
    if dtype is not None:
        config.model.dtype = dtype
    mesh = make_mesh() if mesh is None else mesh
    module = make_model(config.model)
    wanted = rules.paths(abstract_params(module, config.model, mesh))
    params = {
        name: place(tensor, wanted[name].sharding, wanted[name].dtype)
        for name, tensor in source.params.items()
    }
    return Model(module, rules.tree(params), config, source.tokenizer, mesh)


def abstract_params(module: nn.Module, config: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model's parameters."""
    boxed = jax.eval_shape(module.init, jax.random.key(0), example_batch(config))["params"]
    shardings = parameter_shardings(boxed, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
    )
