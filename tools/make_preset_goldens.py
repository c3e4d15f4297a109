"""Records what transformers and open_clip make of images with the preprocessing files that clipjax writes.

    python tools/make_preset_goldens.py        # tests/data/golden/presets.npz

Needs the `reference` extra (transformers 5.23.0 and open-clip-torch 3.3.0 on torch) and scikit-image, which has the
photographs. The pixels are those of Pillow (transformers' `backend="pil"`); its default, torchvision's own resampling,
is compared too, and how far it is off is printed.
"""

import importlib.metadata
import json
import pathlib
import random
import tempfile
from typing import Any

import numpy as np
from make_clip_bpe_golden import import_open_clip
from PIL import Image

from clipjax.data.drawings import Drawings
from clipjax.data.images import flatten
from clipjax.data.presets import PRESETS, Preset, to_hugging_face, to_open_clip

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tests/data/golden/presets.npz"
SIZE, PATCH, PATCHES = 24, 6, 22
WHITE = Preset("longest", "bicubic", *PRESETS["clip"][2:])
NAFLEX = Preset("naflex", "bilinear", *PRESETS["siglip"][2:])

# name -> (preset, model type); the kinds of files that are written.
HUGGING_FACE = {
    "clip": (PRESETS["clip"], "clip"),
    "siglip": (PRESETS["siglip"], "siglip"),
    "dinov2": (PRESETS["imagenet"], "dinov2"),
    "veclip": (PRESETS["veclip"], "metaclip_2"),
    "naflex": (NAFLEX, "siglip2"),
}
OPEN_CLIP = {
    "shortest": PRESETS["clip"],
    "bilinear": PRESETS["veclip"],
    "squash": PRESETS["siglip"],
    "longest": WHITE,
}


def imgs() -> dict[str, np.ndarray]:
    """Photographs and a drawing, uint8 [H, W, 3], of several shapes.

    None is so tall that Pillow 13 resamples columns first, where older ones begin with rows: that moves up to 3 levels.
    """
    import skimage.data

    drawing = next(iter(Drawings("seen")))["image"][0]
    return {
        "astronaut": skimage.data.astronaut()[:256, 100:300],
        "coffee": skimage.data.coffee()[100:200],
        "chelsea": skimage.data.chelsea(),
        # The shorter side becomes 24 px, the longer 35. Eleven too many make halves, which are rounded differently.
        "rocket": skimage.data.rocket()[:, :623],
        "drawing": np.asarray(flatten(Image.fromarray(drawing)))[:, 4:52],
    }


def levels(values: Any, preset: Preset) -> np.ndarray:
    """0 to 255 from normalised channels, the last axis; they must come out whole."""
    found = (np.asarray(values, np.float64) * preset.std + preset.mean) * 255
    if np.abs(found - found.round()).max() > 2e-3:
        raise SystemExit("not the mean and std of the preset")
    return found.round().astype(np.uint8)


def hugging_face(preset: Preset, model_type: str, backend: str, image: np.ndarray) -> np.ndarray:
    """Levels [24, 24, 3]; of NaFlex, patches [n, 108] without the padding."""
    from transformers import AutoImageProcessor

    written = to_hugging_face(preset, SIZE, model_type, PATCH, PATCHES)
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "preprocessor_config.json").write_text(json.dumps(written))
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    found = processor(Image.fromarray(image), return_tensors="np")
    pixels = found["pixel_values"][0]
    if preset.resize != "naflex":
        return levels(pixels.transpose(1, 2, 0), preset)
    pixels = pixels[: found["spatial_shapes"][0].prod()]
    return levels(pixels.reshape(len(pixels), -1, 3), preset).reshape(len(pixels), -1)


def open_clip(preset: Preset, image: np.ndarray) -> np.ndarray:
    """Levels [24, 24, 3]."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**to_open_clip(preset, SIZE)), is_train=False)
    return levels(transform(Image.fromarray(image)).numpy().transpose(1, 2, 0), preset)


def naflex_sizes(count: int) -> list[list[int]]:
    """Rows of height, width, patch, highest number of patches, and the rows and columns that transformers finds."""
    from transformers.models.siglip2.image_processing_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    draw, found = random.Random(0), []
    for _ in range(count):
        height, width = (round(2 ** draw.uniform(0, 13)) for _ in range(2))
        patch, most = draw.choice((14, 16, 32)), round(2 ** draw.uniform(0, 11))
        size = get_image_size_for_max_num_patches(height, width, patch, most)
        found.append([height, width, patch, most, *(side // patch for side in size)])
    return found


def main() -> None:
    """Writes the golden."""
    import_open_clip()
    found: dict[str, np.ndarray] = {}
    for img, image in imgs().items():
        for kind, (preset, model_type) in HUGGING_FACE.items():
            name = f"hugging_face/{kind}/{img}"
            found[name] = hugging_face(preset, model_type, "pil", image)
            other = hugging_face(preset, model_type, "torchvision", image)
            off = np.abs(other.astype(int) - found[name]).max()
            print(f"{name}: torchvision is off by {off} of 255")
        for kind, preset in OPEN_CLIP.items():
            found[f"open_clip/{kind}/{img}"] = open_clip(preset, image)
    packages = ("transformers", "open_clip_torch", "torch", "torchvision", "pillow")
    about = {
        "about": "levels of 0..255 by transformers (Pillow) and open_clip; images() of the tool",
        "command": "python tools/make_preset_goldens.py",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "hugging_face": {
            kind: to_hugging_face(preset, SIZE, model_type, PATCH, PATCHES)
            for kind, (preset, model_type) in HUGGING_FACE.items()
        },
        "naflex_sizes": naflex_sizes(500),
        "open_clip": {kind: to_open_clip(preset, SIZE) for kind, preset in OPEN_CLIP.items()},
    }
    np.savez_compressed(GOLDEN, about=np.array(json.dumps(about)), **found)
    print(f"{GOLDEN}: {len(found)} images, {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
