"""Where objects lie, what hides what, and the image that this makes. Later objects are in front of earlier ones."""

from typing import NamedTuple

import numpy as np

from clipjax.data.scenes.sprites import SOLID

MIN_PIXELS = 24  # of an object must be visible


class Object(NamedTuple):
    """A sprite at a place.

    Attributes:
      sprite: uint8 RGBA [h,w,4].
      left, top: of the sprite in the image, in pixels; may be negative.
    """

    sprite: np.ndarray
    left: int
    top: int

    def inside(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
        """(the part of an image [H,W] where it lies, the part of the sprite that lies there)."""
        height, width = self.sprite.shape[:2]
        top, bottom = max(0, self.top), min(shape[0], self.top + height)
        left, right = max(0, self.left), min(shape[1], self.left + width)
        region = (slice(top, max(top, bottom)), slice(left, max(left, right)))
        part = self.sprite[
            region[0].start - self.top : region[0].stop - self.top,
            region[1].start - self.left : region[1].stop - self.left,
        ]
        return region, part


class Layout(NamedTuple):
    """Objects from back to front.

    Attributes:
      owner_HxW: int16, the number of the object that a pixel shows; -1 is background.
      objects: what lies there.
      visible: visible pixels of each object.
      needed: how many of them must stay visible.
    """

    owner_HxW: np.ndarray
    objects: tuple[Object, ...] = ()
    visible: tuple[int, ...] = ()
    needed: tuple[int, ...] = ()

    @classmethod
    def empty(cls, size: tuple[int, int]) -> "Layout":
        """No objects; `size` is (W, H)."""
        return cls(np.full((size[1], size[0]), -1, np.int16))

    def add(self, item: Object, max_occlusion: float) -> "Layout | None":
        """The layout with one more object in front, or None if that or another would be hidden too much.

        Args:
          item: what is added.
          max_occlusion: share of an object's pixels that may be hidden or outside the image.
        """
        region, part = item.inside(self.owner_HxW.shape)
        solid = part[..., 3] >= SOLID
        seen = int(solid.sum())
        needed = max(MIN_PIXELS, _ceil((1 - max_occlusion) * pixels(item)))
        if seen < needed:
            return None
        hidden = np.bincount(self.owner_HxW[region][solid] + 1, minlength=len(self.objects) + 1)
        visible = [v - int(h) for v, h in zip(self.visible, hidden[1:], strict=True)]
        if any(v < n for v, n in zip(visible, self.needed, strict=True)):
            return None
        owner_HxW = self.owner_HxW.copy()
        owner_HxW[region][solid] = len(self.objects)
        return Layout(owner_HxW, (*self.objects, item), (*visible, seen), (*self.needed, needed))

    def masks(self) -> np.ndarray:
        """The pixels that show each object, bool [m,H,W]; no pixel shows two."""
        numbers = np.arange(len(self.objects), dtype=np.int16)
        return self.owner_HxW == numbers[:, None, None]

    def boxes(self) -> np.ndarray:
        """x1, y1, x2, y2 of the visible pixels, float32 [m,4] as fractions of the image."""
        return np.stack([_bounds(mask_HxW) for mask_HxW in self.masks()])

    def boxes_full(self) -> np.ndarray:
        """Bounds of whole objects, what is hidden included, clipped to the image; float32 [m,4]."""
        height, width = self.owner_HxW.shape
        boxes = []
        for item in self.objects:
            x1, y1, x2, y2 = _edges(item.sprite[..., 3] >= SOLID)
            x1, x2 = (min(max(x + item.left, 0), width) / width for x in (x1, x2))
            y1, y2 = (min(max(y + item.top, 0), height) / height for y in (y1, y2))
            boxes.append((x1, y1, x2, y2))
        return np.array(boxes, np.float32)

    def occlusion(self) -> np.ndarray:
        """Share of each object's pixels that is hidden by others or outside the image, float32 [m]."""
        totals = np.array([pixels(item) for item in self.objects])
        return (1 - np.array(self.visible) / totals).astype(np.float32)

    def cover(self) -> np.ndarray:
        """Row i, column j is the share of object i's pixels at which one sees object j, float64 [m,m].

        On the diagonal it is the visible share.
        """
        rows = []
        for item in self.objects:
            region, part = item.inside(self.owner_HxW.shape)
            owners = self.owner_HxW[region][part[..., 3] >= SOLID] + 1
            rows.append(np.bincount(owners, minlength=len(self.objects) + 1)[1:] / pixels(item))
        return np.stack(rows)

    def paint(self, background_HxWx3: np.ndarray) -> np.ndarray:
        """The image, uint8 [H,W,3]; edges are blended."""
        image = background_HxWx3.astype(np.float32)
        for item in self.objects:
            region, part = item.inside(self.owner_HxW.shape)
            under = image[region]
            under += (part[..., :3] - under) * (part[..., 3:] * np.float32(1 / 255))
        return (image + 0.5).astype(np.uint8)


def pixels(item: Object) -> int:
    """Pixels of the whole object."""
    return int((item.sprite[..., 3] >= SOLID).sum())


def _ceil(value: float) -> int:
    return int(np.ceil(value - 1e-9))


def _edges(mask_HxW: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 in pixels, the last two exclusive."""
    columns, rows = np.flatnonzero(mask_HxW.any(0)), np.flatnonzero(mask_HxW.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _bounds(mask_HxW: np.ndarray) -> np.ndarray:
    height, width = mask_HxW.shape
    return (np.array(_edges(mask_HxW)) / (width, height, width, height)).astype(np.float32)
