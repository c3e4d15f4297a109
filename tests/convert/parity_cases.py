"""The parity goldens as cases: files laid out as their library writes them, inputs as a batch."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from clipjax.convert import timm_models
from clipjax.convert.formats import Options
from tests.convert import parity_weights

FOLDER = Path(__file__).parent / "golden" / "parity"
BERTS = ("hugging_face_bert", "hugging_face_xlm_roberta")
FORMATS = ("openai", "open_clip", "hugging_face", "big_vision", "timm", "clip_moe", "long_clip")


@dataclass(frozen=True)
class Golden:
    """One file of the folder."""

    name: str

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        return json.loads((FOLDER / f"{self.name}.json").read_text())

    @property
    def format(self) -> str:
        return next(f for f in FORMATS if self.name.startswith(f))

    @property
    def single(self) -> bool:
        return not {"image_embedding", "text_embedding"} <= self.data["outputs"].keys()

    def options(self) -> Options:
        """What a user would have to say beside the files."""
        # A BERT's goldens are of the mean of its tokens.
        return Options(model="mean" if self.name in BERTS else None)

    def batch(self) -> dict[str, np.ndarray]:
        """The inputs under clipjax's names."""
        inputs, batch = self.data["inputs"], {}
        if "images" in inputs:
            batch["image"] = parity_weights.images(self.data)
        if "patches" in inputs:
            batch["image"] = parity_weights.patches(self.data)
            batch["image_shape"] = np.array(inputs["spatial_shapes"], np.int32)
        if "text" in inputs:
            batch["text"] = np.array(inputs["text"], np.int32)
        return batch

    def embeddings(self) -> dict[str, np.ndarray]:
        """The library's normalised outputs."""
        outputs = self.data["outputs"]
        fields = ("image_embedding", "text_embedding")
        return {f: np.array(outputs[f], np.float32) for f in fields if f in outputs}


GOLDENS = {p.stem: Golden(p.stem) for p in sorted(FOLDER.glob("*.json"))}


def lay_out(golden: Golden, folder: Path) -> Path:
    """Writes the golden's files; returns the path that a user would give."""
    data = golden.data
    folder.mkdir(exist_ok=True)
    for name, content in data["files"].items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    tensors = {key: np.asarray(array) for key, array in parity_weights.tensors(data).items()}
    weights = data["weights_file"]
    if weights.endswith(".index.json"):
        shards = data["files"][weights]["weight_map"]
        for shard in set(shards.values()):
            save_file({k: tensors[k] for k in shards if shards[k] == shard}, folder / shard)
        return folder
    if weights.endswith(".npz"):
        np.savez(folder / weights, **tensors)
        return folder / weights
    # Recognised by content: what torch would have pickled can as well be in safetensors.
    save_file(tensors, folder / weights)
    return folder if data["files"] else folder / weights


def register_timm(golden: Golden, monkeypatch: Any) -> None:
    """Makes the tiny timm models of a golden known by the names in its open_clip config."""
    tiny = golden.data.get("timm") or {}
    known = timm_models.arguments

    def arguments(name: str, given: Any = None) -> dict[str, Any]:
        if name in tiny:
            entry = tiny[name]
            return known(entry["architecture"], {**entry["model_args"], **(given or {})})
        return known(name, given)

    monkeypatch.setattr(timm_models, "arguments", arguments)
