"""clipjax's side: converts every model into every format, and writes down what it takes and gives itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from clipjax.convert import formats
from clipjax.convert.command import convert
from clipjax.convert.parts import without
from clipjax.convert.source import Source, cast, open_source, resized
from clipjax.data.presets import Preset
from clipjax.data.tokenizers.absent import Absent
from clipjax.encode.encoder import Encoder, Patches
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.models import make_model
from written import cases

IMAGE = (61, 43)  # height, width


def write(output: Path, only: str = "") -> None:
    """Writes `output`/CASE/: `model/`, `ours.npz` and `case.json`; a refusal is a `case.json` alone."""
    for origin in cases.origins():
        if not origin.name.startswith(only):
            continue
        with pytest.MonkeyPatch.context() as patch:
            cases.known_to_timm(origin.timm, patch)
            names = _write(origin, output)
        print(f"{origin.name}: {', '.join(names)}", flush=True)


def _write(origin: cases.Origin, output: Path) -> list[str]:
    folder = output / "origins" / origin.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path, ours = origin.put(folder / "theirs"), folder / "ours"
    convert(str(path), str(ours), options=origin.options, **origin.change)
    whole = open_source(ours)
    source = without(whole, origin.more.get("left_out", ()))
    # As the checkpoint was read, not as clipjax's own was written: a mistake in either would show.
    first = open_source(path, options=origin.options)
    changes = dict(origin.change)
    first = cast(resized(first, changes.get("size"), changes.get("length")), changes.get("dtype"))
    model = source.config.model
    batch = origin.batch() if origin.batch else cases.batch_for(model, source.tokenizer)
    arrays = {f"input_{name}": array for name, array in batch.items()}
    arrays |= cases.embed(whole.config.model, first.params, batch)
    arrays |= _prepared(source)
    written = []
    for name in origin.targets or formats.FORMATS:
        case = output / "cases" / f"{origin.name}-{name}"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir(parents=True)
        described = _described(origin, source, name)
        try:
            convert(str(ours), str(case / "model"), to=name, **origin.more)
        except UserError as error:
            described["refused"] = str(error)
        else:
            np.savez(case / "ours.npz", **arrays)
            written.append(name)
        (case / "case.json").write_text(json.dumps(described, indent=1, ensure_ascii=False))
    return written


def _described(origin: cases.Origin, source: Source, target: str) -> dict[str, Any]:
    text = source.config.model.get("text", {})
    return {
        "origin": origin.name,
        "target": target,
        "timm": dict(origin.timm) | cases.TIMM_NAMES,
        "experts": dict(origin.said),
        "texts": cases.TEXTS if _has_tokenizer(source) else [],
        "pad": text.get("pad_id", 0) if text.get("kind") == "bert" else None,
        "pool": text.get("pool"),
        "end": text.get("end_token") if text.get("pool") == "eot" else None,
        "pillow": PIL.__version__,
        "dtype": origin.change.get("dtype", "float32"),
    }


def _has_tokenizer(source: Source) -> bool:
    return source.tokenizer is not None and not isinstance(source.tokenizer, Absent)


def _prepared(source: Source) -> dict[str, np.ndarray]:
    """What clipjax makes of one image, and of `cases.TEXTS`."""
    found: dict[str, np.ndarray] = {}
    model = source.config.model
    if "image" in model:
        generator = np.random.default_rng(0)
        small = generator.integers(0, 256, (8, 6, 3), np.uint8)
        image = Image.fromarray(small).resize(IMAGE[::-1], Image.Resampling.BICUBIC)
        encoder = Encoder(make_model(model), source.config, source.tokenizer, make_mesh())
        pixels = encoder.pixels(image)
        preset = Preset.of(source.config)
        if isinstance(pixels, Patches):
            found["shape"] = np.array(pixels.shape)
            values = pixels.patches.reshape(len(pixels.patches), -1, 3)
        else:
            values = pixels
        normal = (values / np.float32(255) - preset.mean) / np.array(preset.std)
        if isinstance(pixels, Patches):
            normal = normal.reshape(pixels.patches.shape)
            normal[np.prod(pixels.shape) :] = 0
        found |= {"image": np.asarray(image), "pixels": normal.astype(np.float32)}
    if _has_tokenizer(source):
        found["ids"] = source.tokenizer(list(cases.TEXTS))
    return found
