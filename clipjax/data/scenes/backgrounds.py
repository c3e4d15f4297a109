"""Backgrounds: photographs that scikit-image ships inside its package, plain colours, gradients and noise.

The photographs are read as files. scikit-image itself is never imported, so nothing can be downloaded.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipjax.errors import UserError
from clipjax.registry import nearest

# Photograph -> (file, English names of concepts that it shows: none of them is put into a scene on it, nor is a
# caption called wrong because it names one). All are in the public domain or CC0, see docs/scenes.md.
TRAIN_PHOTOS = {
    "astronaut": ("astronaut.png", ("rocket", "military helmet", "rescue worker’s helmet")),
    "brick": ("brick.png", ("brick",)),
    "chelsea": ("chelsea.png", ("cat", "cat face", "tiger", "tiger face", "leopard")),
    "clock": ("clock_motion.png", ("mantelpiece clock", "watch", "stopwatch", "timer clock")),
    "coffee": ("coffee.png", ("hot beverage", "teacup without handle", "spoon", "wood")),
    "coins": ("coins.png", ("coin",)),
    "grass": ("grass.png", ("herb", "leafy green")),
    "hubble": ("hubble_deep_field.jpg", ("milky way", "night with stars", "star", "glowing star")),
    "tissue": ("ihc.png", ("microbe",)),
}
TEST_PHOTOS = {
    "cameraman": (
        "camera.png",
        ("camera", "camera with flash", "movie camera", "video camera", "coat"),
    ),
    "gravel": ("gravel.png", ("rock",)),
    "retina": ("retina.jpg", ("full moon", "new moon", "sun")),
    "rocket": ("rocket.jpg", ("rocket", "night with stars", "cityscape at dusk")),
}
PHOTOS = TRAIN_PHOTOS | TEST_PHOTOS
GROUPS = {"photos": tuple(TRAIN_PHOTOS), "test_photos": tuple(TEST_PHOTOS)}
MADE = ("plain", "gradient", "noise")

LONGEST = (
    640  # pixels; larger photographs are made smaller once, so that cropping them takes no longer
)
CROP = (0.4, 1.0)  # sides of a crop, as shares of the largest that fits


def check(given: Sequence[str] | str) -> tuple[str, ...]:
    """The names of backgrounds as a tuple.

    Raises:
      UserError: no such background, one named twice, or photographs without scikit-image.
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    valid = (*GROUPS, *MADE, *PHOTOS)
    for name in names:
        if name not in valid:
            raise UserError(f"Scenes have no backgrounds {name!r}{nearest(str(name), valid)}.")
    if not names or len(set(names)) < len(names):
        raise UserError(f"Scenes need each background once and at least one; got {list(names)}.")
    for name in names:
        for photo in GROUPS.get(name, (name,)):
            if photo in PHOTOS:
                _path(photo)
    return names


def shown(name: str) -> tuple[str, ...]:
    """English names of concepts that may be seen in the background `name`."""
    return PHOTOS[name][1] if name in PHOTOS else ()


def draw(
    names: Sequence[str], size: tuple[int, int], rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """(name of the photograph or kind, uint8 [H,W,3]); each of `names` is as likely, and each photograph of a group.

    Args:
      names: as `check` returns them.
      size: (W, H).
      rng: all randomness.
    """
    name = names[rng.integers(len(names))]
    if name in GROUPS:
        name = GROUPS[name][rng.integers(len(GROUPS[name]))]
    if name == "plain":
        return name, np.broadcast_to(_colours(rng, 1)[0], (size[1], size[0], 3))
    if name == "gradient":
        return name, _gradient(size, rng)
    if name == "noise":
        cells = rng.integers(0, 256, (*rng.integers(2, 17, 2), 3), np.uint8)
        return name, np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))
    return name, _crop(_photo(name), size, rng)


def _crop(photo: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random part of a photograph with the frame's aspect ratio, flipped half of the time."""
    share = rng.uniform(*CROP) * min(p / s for p, s in zip(photo.size, size, strict=True))
    width, height = size[0] * share, size[1] * share
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    box = (left, top, min(left + width, photo.width), min(top + height, photo.height))
    pixels = np.asarray(photo.resize(size, Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One colour turns into another, in any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    across_W = np.linspace(-1, 1, size[0], dtype=np.float32) * np.float32(np.cos(angle))
    down_H = np.linspace(-1, 1, size[1], dtype=np.float32) * np.float32(np.sin(angle))
    first, last = _colours(rng, 2).astype(np.float32)
    share_HxWx1 = ((across_W + down_H[:, None]) / (2 * np.sqrt(2)) + 0.5)[..., None]
    return (first + share_HxWx1 * (last - first) + 0.5).astype(np.uint8)


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, (count, 3), np.uint8)


def _path(photo: str) -> Path:
    """Where the installed scikit-image keeps a photograph."""
    way_out = "pip install 'clipjax[scenes]', or set backgrounds='plain'"
    found = importlib.util.find_spec("skimage")  # finds it, does not import it
    if found is None or not found.submodule_search_locations:
        raise UserError(f"Backgrounds of photographs need scikit-image: {way_out}.")
    path = Path(found.submodule_search_locations[0]) / "data" / PHOTOS[photo][0]
    if not path.is_file():
        raise UserError(f"The installed scikit-image lacks the photograph {path.name}: {way_out}.")
    return path


@functools.cache
def _photo(name: str) -> Image.Image:
    """RGB, read once a process; all together take about 10 MB."""
    with Image.open(_path(name)) as image:
        photo = image.convert("RGB")
    photo.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return photo
