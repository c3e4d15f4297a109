"""Regions of images: boxes in, embeddings out; texts in, boxes out. See docs/regions.md."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import linen as nn

from clipjax.data.augment import fit_geometry
from clipjax.data.geometry import WHOLE, Geometry
from clipjax.data.images import fits, upright_size
from clipjax.errors import UserError
from clipjax.models import REGION_HEADS
from clipjax.registry import lookup, nearest

if TYPE_CHECKING:
    from clipjax.encode.encoder import Encoder

HOWS = ("model", "roi_align", "crop")

# Boxes or texts of one row; each of these shapes compiles once. An image with more of them has several rows.
SLOTS = (4, 16, 64)
# A box may be so far outside of [0, 1] by rounding.
SLACK = 1e-3
# Images that are decoded and cut at a time.
CUTTING = 64


class RegionPrograms:
    """Embeds boxes of images, and finds boxes of texts, with the model of an `Encoder`.

    Args:
      encoder: reads images and texts, and runs programs over the mesh.
      model: its module.
      config: the run's config: `model` and `preprocess` are read.
    """

    def __init__(self, encoder: "Encoder", model: nn.Module, config: Mapping[str, Any]):
        self._encoder, self._model = encoder, model
        self._config, self._fitting = config["model"], dict(config["preprocess"])
        self._programs: dict[str, Callable[..., jax.Array]] = {}

    def check(self, how: str) -> None:
        """Refuses a way of embedding regions that there is not, or not for this model."""
        if how not in HOWS:
            raise UserError(f"Regions cannot be embedded with how={how!r}{nearest(how, HOWS)}.")
        if "image" not in self._config:
            raise UserError("This model has no image tower, so it cannot embed regions.")
        if how == "model" and "regions" not in self._config:
            raise UserError(
                "This model has no region head; embed regions with how='roi_align' or how='crop'."
            )
        if how == "roi_align" and not hasattr(self._model, "pool_regions"):
            raise UserError(
                "An image tower alone has no image tokens to pool; embed regions with how='crop'."
            )
        image = self._config["image"]
        if how == "roi_align" and image.get("kind") == "resnet":
            raise UserError(
                "A ResNet's tokens cannot be projected without its attention pooling; embed regions with how='crop'."
            )
        if how == "roi_align" and image.get("pool") == "attention":
            raise UserError(
                "With model.image.pool='attention' the tokens are queries, not patches; embed regions with how='crop'."
            )
        if how == "roi_align" and self._naflex:
            raise UserError(
                "RoI-Align needs square images, and a NaFlex model has others; embed regions with how='crop'."
            )

    def check_ground(self) -> None:
        """Refuses a model that finds no boxes."""
        kind = self._config.get("regions", {}).get("kind")
        head = lookup(kind, REGION_HEADS, "region head") if kind else None
        if not getattr(head, "takes_texts", False):
            raise UserError(
                "This model cannot find the box of a text; that needs a region_dual_encoder with "
                "config.model.regions.kind = 'prompter'."
            )

    def embed(
        self, params: Any, images: Sequence[Any], boxes: Sequence[Any], how: str
    ) -> list[np.ndarray]:
        """See `Encoder.regions`."""
        self.check(how)
        boxes = _check_boxes(images, boxes)
        if how == "crop":
            return self._crops(params, images, boxes)
        pixels, frames = self._frames(images)
        framed = []
        for place, (boxes_Mx4, frame) in enumerate(zip(boxes, frames, strict=True)):
            found_Mx4, visible_M = frame.boxes(boxes_Mx4)
            for number in np.flatnonzero(visible_M == 0):
                raise UserError(
                    f"Box {number} of image {place} lies outside of what the model sees of the image "
                    f"(preprocess.resize is {self._fitting['resize']!r}); leave it out, or use how='crop'."
                )
            framed.append(found_Mx4)
        return self._prompt(how, params, pixels, "boxes", framed)

    def visible(self, images: Sequence[Any], boxes: Sequence[Any], how: str) -> list[np.ndarray]:
        """See `Encoder.visible`."""
        self.check(how)
        boxes = _check_boxes(images, boxes)
        found = []
        for place, (image, boxes_Mx4) in enumerate(zip(images, boxes, strict=True)):
            with self._encoder.naming(image, place):
                size = upright_size(self._encoder.read(image))
            if how == "crop":
                cut = [
                    (right - left, low - top) for left, top, right, low in _pixels(boxes_Mx4, size)
                ]
                found.append(np.array([self._fits(one) for one in cut], bool))
            else:
                found.append(self._frame(size).boxes(boxes_Mx4)[1] > 0)
        return found

    def ground(
        self, params: Any, images: Sequence[Any], texts: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """See `Encoder.ground`."""
        self.check_ground()
        if len(texts) != len(images):
            raise UserError(
                f"There are {len(texts)} lists of texts for {len(images)} images; give each image one list."
            )
        for place, some in enumerate(texts):
            if isinstance(some, str):
                raise UserError(f"The texts of image {place} are a string; give a list of strings.")
        pixels, frames = self._frames(images)
        ids = [self._encoder.ids(some, f" of image {n}") for n, some in enumerate(texts)]
        found = self._prompt("ground", params, pixels, "region_text", ids)
        return [
            np.clip(frame.inverse().points(boxes_Mx4.reshape(-1, 2)), 0, 1)
            .reshape(-1, 4)
            .astype(np.float32)
            for frame, boxes_Mx4 in zip(frames, found, strict=True)
        ]

    @property
    def _naflex(self) -> bool:
        return self._config["image"].get("positions") == "naflex"

    def _fits(self, size: tuple[int, int]) -> bool:
        """Whether the model takes an image of this (width, height)."""
        settings = {k: v for k, v in self._fitting.items() if k != "interpolation"}
        return self._naflex or fits(size, self._config["image"]["size"], **settings)

    def _frame(self, size: tuple[int, int]) -> Geometry:
        """From an upright image of (width, height) to the model's input frame."""
        if self._naflex:
            return WHOLE
        crop_fraction = self._fitting.get("crop_fraction", 1.0)
        return fit_geometry(
            size, self._config["image"]["size"], self._fitting["resize"], crop_fraction
        )

    def _frames(self, images: Sequence[Any]) -> tuple[list[Any], list[Geometry]]:
        """Each image as the model sees it, and where its points went."""

        def prepare(image: Any, place: int) -> tuple[Any, Geometry]:
            with self._encoder.naming(image, place):
                upright = self._encoder.upright(image)
                return self._encoder.fit(upright), self._frame(upright.size)

        with ThreadPoolExecutor() as pool:
            found = list(pool.map(prepare, images, range(len(images))))
        return [pixels for pixels, _ in found], [frame for _, frame in found]

    def _prompt(
        self,
        how: str,
        params: Any,
        pixels: Sequence[Any],
        field: str,
        prompts: Sequence[np.ndarray],
    ) -> list[np.ndarray]:
        """Runs the model over images with any number of prompts each, the image tower once for up to 64 of an image.

        Args:
          how: which program.
          params: parameters of the model.
          pixels: n images as `Encoder.fit` makes them.
          field: of the batch, in which the prompts are.
          prompts: n arrays [m, ...].

        Returns:
          n arrays, float32 [m, D], D the numbers that the program makes of a prompt.
        """
        results: list[np.ndarray] = []
        rows: dict[int, list[tuple[int, int, int]]] = {slots: [] for slots in SLOTS}
        for owner, some in enumerate(prompts):
            for start in range(0, len(some), SLOTS[-1]):
                count = min(SLOTS[-1], len(some) - start)
                slots = next(s for s in SLOTS if s >= count)
                rows[slots].append((owner, start, count))
        for slots, places in rows.items():
            if not places:
                continue
            parts = [prompts[owner][start : start + count] for owner, start, count in places]
            batch = self._encoder.image_batch([pixels[owner] for owner, *_ in places])
            batch[field] = np.stack([_pad(part, slots) for part in parts])
            # As many prompts at a time in rows of any length.
            size = self._encoder.whole(self._encoder.batch_size * SLOTS[0] // slots)
            found = self._encoder.apply(self._program(how), params, batch, size)
            if not results:
                results = [np.zeros((len(p), found.shape[-1]), np.float32) for p in prompts]
            for (owner, start, count), row in zip(places, found, strict=True):
                results[owner][start : start + count] = row[:count]
        if not results:
            width = 4 if how == "ground" else self._encoder.width
            return [np.zeros((0, width), np.float32) for _ in prompts]
        return results

    def _program(self, how: str) -> Callable[..., jax.Array]:
        output = {"model": "region_embedding", "ground": "grounded_boxes"}

        def apply(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            if how == "roi_align":
                return self._model.apply({"params": params}, batch, method="pool_regions")
            return self._model.apply({"params": params}, batch)[output[how]]

        if how not in self._programs:
            self._programs[how] = self._encoder.program(apply)
        return self._programs[how]

    def _crops(
        self, params: Any, images: Sequence[Any], boxes: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Each box as an image of its own."""
        encoder = self._encoder

        def cut(image: Any, place: int) -> list[Any]:
            with encoder.naming(image, place):
                upright = encoder.upright(image)
            cut = [upright.crop(box) for box in _pixels(boxes[place], upright.size)]
            for number, crop in enumerate(cut):
                if not self._fits(crop.size):
                    raise UserError(
                        f"Box {number} of image {place} is too long and thin to be an image of its own; leave it out."
                    )
            return [encoder.fit(crop) for crop in cut]

        waiting: list[Any] = []
        found = []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), CUTTING):
                some = images[start : start + CUTTING]
                for crops in pool.map(cut, some, range(start, start + len(some))):
                    waiting += crops
                while len(waiting) >= encoder.batch_size:
                    part, waiting = waiting[: encoder.batch_size], waiting[encoder.batch_size :]
                    found.append(encoder.run("image", params, encoder.stack(part)))
        if waiting or not found:
            found.append(encoder.run("image", params, encoder.stack(waiting)))
        ends = np.cumsum([len(boxes_Mx4) for boxes_Mx4 in boxes])[:-1]
        return np.split(np.concatenate(found), ends) if boxes else []


def _check_boxes(images: Sequence[Any], boxes: Sequence[Any]) -> list[np.ndarray]:
    """Boxes as float64 [m, 4] within [0, 1].

    Raises:
      UserError: not one array for each image, or a box that is none; it is named.
    """
    if len(boxes) != len(images):
        raise UserError(
            f"There are {len(boxes)} arrays of boxes for {len(images)} images; give each image one array [m, 4]."
        )
    return [_check_array(array, place) for place, array in enumerate(boxes)]


def _check_array(array: Any, place: int) -> np.ndarray:
    try:
        boxes_Mx4 = np.asarray(array, np.float64)
    except (TypeError, ValueError):
        boxes_Mx4 = np.full(1, np.nan)
    if not boxes_Mx4.size:
        return np.zeros((0, 4))
    if boxes_Mx4.ndim != 2 or boxes_Mx4.shape[1] != 4 or not np.isfinite(boxes_Mx4).all():
        raise UserError(f"The boxes of image {place} are not [m, 4] finite numbers x1, y1, x2, y2.")
    inside_Mx4 = np.clip(boxes_Mx4, 0, 1)
    beyond_M = np.abs(boxes_Mx4 - inside_Mx4).max(axis=1) > SLACK
    empty_M = (inside_Mx4[:, 2:] <= inside_Mx4[:, :2]).any(axis=1)
    for bad_M, what in (
        (beyond_M, "is not in [0, 1]; divide pixels by the upright image's width and height"),
        (empty_M, "has no area; a box is x1, y1, x2, y2 with x1 < x2 and y1 < y2"),
    ):
        for number in np.flatnonzero(bad_M):
            shown = ", ".join(f"{v:g}" for v in boxes_Mx4[number])
            raise UserError(f"Box {number} of image {place}, ({shown}), {what}.")
    return inside_Mx4


def _pixels(boxes_Mx4: np.ndarray, size: tuple[int, int]) -> Iterable[tuple[int, int, int, int]]:
    """The whole pixels that boxes touch, left, top, right, bottom; at least one."""
    sides = np.array([*size, *size])
    for box_4 in boxes_Mx4 * sides:
        low = np.minimum(np.floor(box_4[:2] + 1e-6), sides[:2] - 1).astype(int)
        high = np.maximum(np.ceil(box_4[2:] - 1e-6), low + 1).astype(int)
        yield (*low.tolist(), *high.tolist())


def _pad(prompts: np.ndarray, slots: int) -> np.ndarray:
    """Repeats the last prompt, which is a good one, until there are `slots`."""
    return np.pad(prompts, [(0, slots - len(prompts))] + [(0, 0)] * (prompts.ndim - 1), mode="edge")
