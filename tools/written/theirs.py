"""The libraries' side: loads all that was written, compares with what clipjax gave, and says so in tables."""

import json
import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from written import loaders, tables

# Largest difference in an L2-normalised embedding (the weights are the same numbers on both sides).
TOLERANCE = 2e-5
# Pixels after normalisation: rounding only; and the torchvision backend of transformers, which resizes tensors of bytes
# in its own way, two levels of 255 off.
PIXELS = {"torchvision": 2.1 / 255 / 0.26}
PIXEL_TOLERANCE = 1.01 / 255 / 0.26  # one level: versions of Pillow round otherwise
END_OF_TEXT = (
    49407  # of CLIP; what stands behind it is never read, and libraries pad with other ids
)


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
        picture = Image.fromarray(ours["picture"])
        for way, make in loaded.pixels.items():
            theirs = make(picture)
            if theirs.shape != ours["pixels"].shape:
                problems.append(f"pixels ({way}) are {theirs.shape}, not {ours['pixels'].shape}")
                continue
            row[f"pixels_{way}"] = float(np.abs(theirs - ours["pixels"]).max())
            if not row[f"pixels_{way}"] <= PIXELS.get(way, PIXEL_TOLERANCE):
                problems.append(f"pixels ({way}) differ by {row[f'pixels_{way}']:.2g}")
    if case["texts"] and loaded.ids is not None:
        rows = _read(loaded.ids(case["texts"]), case)
        ours["ids"] = _read(ours["ids"], case)
        row["ids"] = bool(rows.shape == ours["ids"].shape and (rows == ours["ids"]).all())
        if not row["ids"] and not case["noted"]:
            problems.append(f"ids differ: {_first_difference(rows, ours['ids'], case['texts'])}")
        if loaded.embed_texts is not None and "text" in inputs:
            row["texts"] = _difference(loaded.embed_texts(case["texts"]), ours["text_embedding"])
            if not row["texts"] <= TOLERANCE and not case["noted"]:
                problems.append(
                    f"texts through the library's tokenizer differ by {row['texts']:.2g}"
                )


def _read(rows: np.ndarray, case: Mapping[str, Any]) -> np.ndarray:
    """Rows with zeros behind the end of the text, where the model reads nothing."""
    if case["pool"] != "eot":
        return rows
    before = np.cumsum(rows == END_OF_TEXT, axis=1) - (rows == END_OF_TEXT)
    return np.where(before == 0, rows, 0)


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
