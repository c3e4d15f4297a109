"""Views of the record's image: the feature `image`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.data.augment import augment, check_augment
from clipjax.data.features.settings import image_size, struct, whole
from clipjax.data.features.view import Frame, View
from clipjax.data.images import check_fit
from clipjax.errors import UserError


class Image:
    """uint8 [S,S,3], one view of the record's image; with V views [V,S,S,3].

    All views are of the same image of a record that has several. How an image fits the frame (`crop="fit"`), and the
    interpolation, are config.preprocess's.

    Args:
      config: of the run.
      name: of the feature and of its field.
      views: their number, all with the same settings and other draws; or a list with one section a view, of the
        settings that differ from `augment`, such as `[{}, {"crop_scale": (0.08, 1.0), "blur": 0.5}]`. None: 1.
      augment: settings of clipjax/data/augment.py; those left out have the defaults there.
      size: side S in pixels; None: config.model.image.size. A view of a list may name it too, but all must agree.

    Raises:
      UserError: a setting that means nothing, or views of several sizes.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        views: int | Sequence[Mapping[str, Any]] | None = None,
        augment: Mapping[str, Any] | None = None,
        size: int | None = None,
    ):
        del size  # `image_size` reads it, for features that follow this one too
        where = f"config.data.features.{name}"
        self.name, self.size = name, image_size(config, name)
        self.fitting = dict(config["preprocess"])
        check_fit(**self.fitting)
        shared = dict(augment or {})
        if not isinstance(views, tuple | list):
            number = 1 if views is None else whole(views, 1, f"{where}.views")
            self.views = [check_augment(shared, f"{where}.augment")] * number
            return
        if not views or not all(isinstance(view, Mapping) for view in views):
            raise UserError(
                f"{where}.views must be a number, or a list with one section a view such as [{{}}, {{'blur': 0.5}}], "
                f"not {views!r}."
            )
        sizes = [view.get("size", self.size) for view in views]
        if any(s != self.size for s in sizes):
            raise UserError(
                f"The views of the feature {name!r} are one array, so they must have one size, not {sizes} "
                f"(config.data.features.{name}.size is {self.size}); give views of another size a feature of their own."
            )
        self.views = []
        for number, view in enumerate(views):
            differing = {k: v for k, v in view.items() if k != "size"}
            self.views.append(check_augment(shared | differing, f"{where}.views[{number}]"))

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The views, under the feature's name."""
        several = (len(self.views),) if len(self.views) > 1 else ()
        return {self.name: struct((*several, self.size, self.size, 3), np.uint8)}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Cuts the views, and leaves their geometries in `view.frames`.

        Raises:
          BadRecord: no image, or one that cannot be used.
        """
        del record
        image, found, frames = view.image, [], []
        for number, settings in enumerate(self.views):
            rng = view.generator(self.name, number) if number else rng
            pixels, geometry = augment(image, self.size, settings, self.fitting, rng)
            found.append(pixels)
            frames.append(Frame(geometry, self.size))
        view.frames[self.name] = frames
        return {self.name: np.stack(found) if len(found) > 1 else found[0]}
