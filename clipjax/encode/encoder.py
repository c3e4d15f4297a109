"""The encoder: images, texts and regions in, embeddings out, in batches of one shape.

It is what evaluators and refreshes see of a model. They bring the parameters, so that one encoder serves a whole run:

    encoder.images(params, [record["image"]])               # float32 [n, D], L2-normalised
    encoder.texts(params, ["a cat"])
    batch = encoder.batch(images=images, texts=texts)       # {"image": uint8 [n,S,S,3], "text": int32 [n,L]}
    found = encoder.outputs(params, batch, only=("image_tokens",))["image_tokens"]    # numpy [n, N, W]
    encoder.tokenizer.decode(ids)
    encoder.module.apply({"params": params}, batch, method="decode")    # what the methods above do not do
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from PIL import Image

from clipjax.batch import example_for
from clipjax.data import naflex
from clipjax.data.bad import BadRecord
from clipjax.data.images import decode, fit, flatten
from clipjax.data.tokenizers import Tokenizer
from clipjax.encode.programs import Programs
from clipjax.encode.regions import RegionPrograms
from clipjax.errors import ImageError, UserError
from clipjax.models import boxed_params, example_batch
from clipjax.registry import nearest

ImageInput = Image.Image | np.ndarray | bytes | str | Path


class Patches(NamedTuple):
    """Images of a NaFlex model: `patches` uint8 [..., N, 3 * p * p], `shape` int32 [..., 2] (their rows, columns)."""

    patches: np.ndarray
    shape: np.ndarray | tuple[int, int]


class Encoder(Programs):
    """Embeds lists of any length in batches of one shape, so that each tower compiles once.

    Args:
      module: the model: with both towers, one of them, or none.
      config: the run's config: `model` and `preprocess` are read.
      tokenizer: makes ids of texts; None for a model without texts.
      mesh: where the parameters live; batches are split over it.
      batch_size: rows at a time, rounded up to what the mesh divides.

    Attributes:
      module: as given, a Flax module: `module.apply({"params": params}, batch)` gives its outputs.
      config: as given.
      tokenizer: as given: `tokenizer(texts)` gives int32 [n, L], `tokenizer.decode(ids)` a text.
      mesh: as given.
      preprocess: the section `config.preprocess` as a dict: how images are resized.
      batch_size: so rounded.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Mapping[str, Any],
        tokenizer: Tokenizer | None,
        mesh: Mesh,
        batch_size: int = 256,
    ):
        super().__init__(mesh, config["model"].get("dtype", "auto"))
        self.module, self.config, self.tokenizer = module, config, tokenizer
        self.preprocess = dict(config["preprocess"])
        self.batch_size = self.whole(batch_size)
        self._image = dict(config["model"]["image"]) if "image" in config["model"] else None
        self._towers = [field for field in ("image", "text") if field in config["model"]]
        self._programs: dict[tuple[str, ...] | None, Callable] = {}
        self._rows_of: dict[tuple, set[str]] = {}
        self._regions = RegionPrograms(self, module, config)

    @functools.cached_property
    def width(self) -> int:
        """Dimensions of an embedding, as the model gives it for an image or, without an image tower, a text.

        Raises:
          UserError: the model has neither tower, or gives no embedding.

        Cost: the model is traced, once.
        """
        if not self._towers:
            raise UserError("This model has no tower, so it has no embeddings of a known width.")
        field = self._towers[0]
        example = example_batch(self.config["model"])
        rows = {k: x for k, x in example.items() if k.startswith(field)}
        with jax.set_mesh(self.mesh):
            boxed = boxed_params(self.module, example_for(self.module, self.config))
            outputs = jax.eval_shape(
                lambda p, b: self._outputs(p, b, [f"{field}_embedding"]), nn.unbox(boxed), rows
            )
        return outputs[f"{field}_embedding"].shape[-1]

    def outputs(
        self, params: Any, batch: Mapping[str, Any], only: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """What the model gives for a batch of any number of rows: its outputs by name, as NumPy arrays on every host.

        The rows are run `batch_size` at a time, split over the mesh and padded as everywhere, so a result does not
        depend on how many there are. Outputs with a row a sample are joined; those of one shape for any number of rows
        (scales, class centres, means) are of the last part of the batch.

        Args:
          params: parameters of the model.
          batch: field -> array [n, ...] with n of at least 1, such as `batch` makes or a model's own fields need.
          only: names of the outputs that are wanted; the others are not computed. None: all of them.

        Raises:
          UserError: fields with different numbers of rows, no rows, or an output in `only` that there is not.
        """
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        rows = {name: len(array) for name, array in arrays.items()}
        if len(set(rows.values())) != 1 or not all(rows.values()):
            raise UserError(
                f"All fields of a batch must have one number of rows, at least 1, but they have {rows}."
            )
        key = None if only is None else tuple(only)
        if key not in self._programs:
            self._programs[key] = self.program(lambda p, b: self._outputs(p, b, key))
        per_row = self._per_row(params, arrays, key)
        found = self._parts(self._programs[key], params, arrays, self.batch_size)
        return {
            name: np.concatenate([part[name][:n] for part, n in found])
            if name in per_row
            else found[-1][0][name]
            for name in found[0][0]
        }

    def _outputs(self, params: Any, batch: Mapping[str, Any], only: Sequence[str] | None) -> Any:
        """The model's outputs, or those that are wanted."""
        try:
            outputs = self.module.apply({"params": params}, batch)
        except KeyError as error:
            if error.args[0] in batch:
                raise
            raise UserError(
                f"The model {type(self.module).__name__} reads {error.args[0]!r}, so it gives nothing for the fields "
                f"{', '.join(batch)} alone; a model must give image_embedding for image, and text_embedding for text."
            ) from error
        outputs = {name: x for name, x in outputs.items() if name != "updates"}
        for name in only or ():
            if name not in outputs:
                raise UserError(
                    f"The model has no output {name!r} for the fields {', '.join(batch)}"
                    f"{nearest(name, list(outputs))}."
                )
        return outputs if only is None else {name: outputs[name] for name in only}

    def _per_row(self, params: Any, batch: Mapping[str, Any], only: Any) -> set[str]:
        """Names of the outputs whose shape depends on the number of rows."""
        known = (only, *((name, x.shape[1:], str(x.dtype)) for name, x in batch.items()))
        if known in self._rows_of:
            return self._rows_of[known]

        def shapes(rows: int) -> Any:
            some = {
                k: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for k, x in batch.items()
            }
            return jax.eval_shape(lambda p, b: self._outputs(p, b, only), params, some)

        with jax.set_mesh(self.mesh):
            one, two = shapes(self.batch_size), shapes(2 * self.batch_size)
        self._rows_of[known] = {name for name, x in one.items() if x.shape != two[name].shape}
        return self._rows_of[known]

    def batch(
        self, images: Sequence[ImageInput] | None = None, texts: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The fields `image` (uint8 [n,S,S,3], or patches for a NaFlex) and `text` (int32 [n,L]) for `outputs`.

        Raises:
          ImageError: an image cannot be read; its place in the list and the reason are named.
          UserError: a text is empty, or the model has no such tower.
        """
        found: dict[str, np.ndarray] = {}
        if images is not None:
            self._check("image")
            with ThreadPoolExecutor() as pool:
                found |= self.image_batch(list(pool.map(self.pixels, images, range(len(images)))))
        if texts is not None:
            self._check("text")
            found["text"] = self.ids(texts)
        return found

    def images(self, params: Any, images: Sequence[ImageInput]) -> np.ndarray:
        """Images (encoded bytes, paths, PIL images or uint8 arrays) -> float32 [n, D], L2-normalised.

        Raises:
          ImageError: an image cannot be read; its place in the list and the reason are named.
        """
        self._check("image")
        with ThreadPoolExecutor() as pool:
            pixels = list(pool.map(self.pixels, images, range(len(images))))
        return self.run("image", params, self.stack(pixels))

    def stack(self, fitted: Sequence[np.ndarray | Patches]) -> np.ndarray | Patches:
        """What `pixels` made of several images, as one batch for `run`."""
        if self._naflex:
            patches = [p.patches for p in fitted]
            shapes = np.array([p.shape for p in fitted], np.int32).reshape(-1, 2)
            empty = np.zeros((0, self._max_patches, 3 * self._image["patch"] ** 2), np.uint8)
            return Patches(np.stack(patches) if patches else empty, shapes)
        size = self._image["size"]
        return np.stack(fitted) if fitted else np.zeros((0, size, size, 3), np.uint8)

    def image_batch(self, fitted: Sequence[np.ndarray | Patches]) -> dict[str, np.ndarray]:
        """The fields of a batch of what `fit` made of several images."""
        stacked = self.stack(fitted)
        if isinstance(stacked, Patches):
            return {"image": stacked.patches, "image_shape": stacked.shape}
        return {"image": stacked}

    @property
    def _naflex(self) -> bool:
        return self._image is not None and self._image.get("positions") == "naflex"

    @property
    def _max_patches(self) -> int:
        return (self._image["size"] // self._image["patch"]) ** 2

    def _check(self, field: str) -> None:
        if field not in self._towers:
            what = {"image": "images", "text": "texts"}[field]
            raise UserError(f"This model has no {field} tower, so it cannot embed {what}.")

    def texts(self, params: Any, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 [n, D], L2-normalised.

        Raises:
          UserError: a text is empty; its place in the list is named.
        """
        self._check("text")
        return self.run("text", params, self.ids(texts))

    def regions(
        self, params: Any, images: Sequence[ImageInput], boxes: Sequence[Any], how: str = "model"
    ) -> list[np.ndarray]:
        """Boxes of images -> for each image float32 [m, D], L2-normalised, in the order of its boxes.

        Args:
          params: parameters of the model.
          images: as for `images`.
          boxes: for each image [m, 4], x1, y1, x2, y2 as fractions of the upright image; m may be 0.
          how: "model": the model's region head; "roi_align": the image tokens in the box, averaged and projected, which
            needs no training for regions; "crop": the box cut out and embedded as an image of its own.

        Raises:
          UserError: an image that cannot be read, a box that is none or of which the model sees nothing, or a model
            without what `how` needs.

        Cost: "model" and "roi_align" run the image tower once an image (of up to 64 boxes), "crop" once a box.
        """
        return self._regions.embed(params, images, boxes, how)

    def visible(
        self, images: Sequence[ImageInput], boxes: Sequence[Any], how: str = "model"
    ) -> list[np.ndarray]:
        """For each image bool [m]: whether the model sees anything of a box; the others `regions` refuses."""
        return self._regions.visible(images, boxes, how)

    def ground(
        self, params: Any, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Texts of images -> for each image float32 [m, 4], where the model's box head says that its texts are.

        Boxes are x1, y1, x2, y2 as fractions of the upright image, clipped to it; an untrained model's corners may be
        in the wrong order.

        Raises:
          UserError: an image or text that cannot be used, or a model without a box head.
        """
        return self._regions.ground(params, images, texts)

    def check_regions(self, how: str) -> None:
        """Raises a UserError where `regions` cannot work in this way with this model."""
        self._regions.check(how)

    def check_ground(self) -> None:
        """Raises a UserError where `ground` cannot work with this model."""
        self._regions.check_ground()

    def pixels(self, image: ImageInput, place: int = 0) -> np.ndarray | Patches:
        """One image as the model sees it before normalisation, uint8 [size, size, 3], or patches for a NaFlex."""
        self._check("image")
        with self.naming(image, place):
            return self.fit(self.upright(image))

    @contextlib.contextmanager
    def naming(self, image: ImageInput, place: int) -> Iterator[None]:
        """Within it, an image that cannot be used is a ImageError that names it."""
        name = f"Image {str(image)!r}" if isinstance(image, str | Path) else f"Image {place}"
        try:
            yield
        except FileNotFoundError as error:
            raise ImageError(f"{name} does not exist.", place, "it does not exist") from error
        except (BadRecord, OSError) as error:
            raise ImageError(f"{name} cannot be used: {error}.", place, str(error)) from error

    def read(self, image: ImageInput) -> Image.Image | np.ndarray | bytes:
        """The bytes of a path; other forms of an image as they are."""
        return Path(image).read_bytes() if isinstance(image, str | Path) else image

    def upright(self, image: ImageInput) -> Image.Image:
        """An image of any form, upright, mode RGB."""
        return flatten(decode(self.read(image)))

    def fit(self, upright: Image.Image) -> np.ndarray | Patches:
        """What the model sees of an image."""
        if self._naflex:
            interpolation = self.preprocess["interpolation"]
            return Patches(
                *naflex.patches(upright, self._image["patch"], self._max_patches, interpolation)
            )
        return fit(upright, self._image["size"], **self.preprocess)

    def ids(self, texts: Sequence[str], where: str = "") -> np.ndarray:
        """Token ids int32 [n, L] of texts; UserError names the first empty one, and `where` it is."""
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"Text {i}{where} is empty; there is nothing to embed.")
        if self.tokenizer is None:
            raise UserError("This model came without a tokenizer, so there are no ids of texts.")
        return self.tokenizer(texts)

    def run(self, field: str, params: Any, array: np.ndarray | Patches) -> np.ndarray:
        """Embeds rows of `image` (uint8, or normalised float32) or `text` ids; the last batch is padded."""
        self._check(field)
        batch = {field: array}
        if isinstance(array, Patches):
            batch = {"image": array.patches, "image_shape": array.shape}
        if not len(batch[field]):
            return np.zeros((0, self.width), np.float32)
        name = f"{field}_embedding"
        if (name,) not in self._programs:
            self._programs[name,] = self.program(lambda p, b: self._outputs(p, b, (name,)))
        parts = self._parts(self._programs[name,], params, batch, self.batch_size)
        return np.concatenate([part[name][:n] for part, n in parts])
