"""The libraries' side: loads all that was written, compares with what clipjax gave, and says so in tables."""

import json
import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from written import loaders, tables

# Largest difference in an L2-normalised embedding (the weights are the same numbers on both sides).
TOLERANCE = 2e-5
# Pixels after normalisation: rounding only. Versions of Pillow differ by one level of 255, and the torchvision backend
# of transformers, which resizes tensors of bytes in its own way, by two.
PIXEL_TOLERANCE = 1e-5
LEVEL = 1.05 / 255 / 0.26


def read(folder: Path, only: str, checkouts: Mapping[str, Path | None]) -> int:
    """Reads `folder`/cases; returns how many cases failed."""
    logging.disable(logging.ERROR)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "cases").iterdir()):
        if path.name.startswith(only):
            rows.append(_row(path, checkouts))
            if rows[-1]["problems"]:
                print(f"{path.name}: {rows[-1]['problems']}", flush=True)
    (folder / "written.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    print(tables.markdown(rows))
    return sum(bool(row["problems"]) for row in rows)


def _row(path: Path, checkouts: Mapping[str, Path | None]) -> dict[str, Any]:
    case = json.loads((path / "case.json").read_text())
    row: dict[str, Any] = {"origin": case["origin"], "target": case["target"], "problems": []}
    if "refused" in case:
        return row | {"refused": case["refused"]}
    loaders.register_timm(case["timm"])
    try:
        with torch.no_grad():
            loaded = loaders.load(path, case, checkouts)
            with np.load(path / "ours.npz") as file:
                _compare(row, loaded, case, dict(file))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        row["problems"].append(f"{type(error).__name__} at {place}: {str(error)[:1500]}")
    return row


def _compare(
    row: dict[str, Any],
    loaded: loaders.Loaded,
    case: Mapping[str, Any],
    ours: dict[str, np.ndarray],
) -> None:
    problems = row["problems"]
    row["architecture"] = loaded.architecture
    problems += loaded.wrong
    inputs = {k.removeprefix("input_"): v for k, v in ours.items() if k.startswith("input_")}
    found = loaded.embed(inputs)
    for name in ("image_embedding", "text_embedding"):
        if name not in ours:
            continue
        row[name] = _difference(found[name], ours[name])
        if not row[name] <= TOLERANCE:
            problems.append(f"{name} differs by {row[name]:.2g}")
    if "pixels" in ours:
        image = Image.fromarray(ours["image"])
        for way, make in loaded.pixels.items():
            theirs = make(image)
            if theirs.shape != ours["pixels"].shape:
                problems.append(f"pixels ({way}) are {theirs.shape}, not {ours['pixels'].shape}")
                continue
            row[f"pixels_{way}"] = float(np.abs(theirs - ours["pixels"]).max())
            levels = 2 if way == "torchvision" else int(case["pillow"] != PIL.__version__)
            if not row[f"pixels_{way}"] <= max(PIXEL_TOLERANCE, levels * LEVEL):
                problems.append(f"pixels ({way}) differ by {row[f'pixels_{way}']:.2g}")
    if case["texts"] and loaded.ids is not None:
        rows, own = loaded.ids(case["texts"]), ours["ids"]
        row["ids"] = _judged(rows, own, case["end"])
        if row["ids"] == "differ":
            problems.append(f"ids differ: {_first_difference(rows, own, case['texts'])}")
        if loaded.embed_texts is not None and "text" in inputs:
            row["texts"] = _difference(loaded.embed_texts(case["texts"]), ours["text_embedding"])
            if not row["texts"] <= TOLERANCE:
                problems.append(
                    f"texts through the library's tokenizer differ by {row['texts']:.2g}"
                )


def _judged(theirs: np.ndarray, ours: np.ndarray, end: int | None) -> str:
    """How two sets of rows compare; `end` is the id behind which the model reads nothing, if there is one."""
    if theirs.shape != ours.shape:
        return "differ"
    if (theirs == ours).all():
        return "same"
    if end is not None:
        # transformers pads CLIP's texts with their end once more.
        read = np.cumsum(ours == end, axis=1) - (ours == end) == 0
        if (theirs == ours)[read].all():
            return "same to the end"
    return "differ"


def _difference(theirs: torch.Tensor, ours: np.ndarray) -> float:
    unit = torch.nn.functional.normalize(theirs.float(), dim=-1).numpy()
    return float(np.abs(unit - ours).max()) if unit.shape == ours.shape else float("inf")


def _first_difference(theirs: np.ndarray, ours: np.ndarray, texts: list[str]) -> str:
    if theirs.shape != ours.shape:
        return f"{theirs.shape} instead of {ours.shape}"
    row = int(np.flatnonzero((theirs != ours).any(axis=1))[0])
    return (
        f"{texts[row][:40]!r} is {theirs[row][:20].tolist()}..., ours {ours[row][:20].tolist()}..."
    )
