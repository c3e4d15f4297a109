"""Loads a directory that clipjax wrote as a user of its library would: no file is touched, no key may be left over.

Each loader gives a `Loaded`. `wrong` has what would be a defect: keys that are missing or left over, in words.
"""

import contextlib
import functools
import json
import os
import unittest.mock
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.model
import open_clip.openai
import safetensors
import timm
import torch
import transformers
from parity import open_clip_files, research
from PIL import Image

from written import big_vision

Inputs = Mapping[str, np.ndarray]


@dataclass
class Loaded:
    """A model of a library, and what belongs to it.

    Attributes:
      architecture: class or function that loaded it.
      embed: inputs (`image`, `image_shape`, `text`) -> embeddings by clipjax's names, not normalised.
      ids: texts -> rows; None where the directory has no tokenizer.
      pixels: name of a way -> image -> what the model is given; the same number of ways as the library has.
      embed_texts: texts -> embeddings, through the library's own tokenizer and all that it gives the model.
      wrong: keys that are missing or left over.
    """

    architecture: str
    embed: Callable[[Inputs], dict[str, torch.Tensor]]
    ids: Callable[[list[str]], np.ndarray] | None = None
    pixels: dict[str, Callable[[Image.Image], np.ndarray]] = field(default_factory=dict)
    embed_texts: Callable[[list[str]], torch.Tensor] | None = None
    wrong: list[str] = field(default_factory=list)


def load(folder: Path, case: Mapping[str, Any], checkouts: Mapping[str, Path | None]) -> Loaded:
    """Loads `folder`/model.

    Raises:
      Exception: whatever the library raises.
    """
    loader = {
        "open_clip": _open_clip,
        "hugging_face": _hugging_face,
        "timm": _timm,
        "openai": _openai,
        "big_vision": lambda folder, case: Loaded(*big_vision.load(folder / "model.npz")),
        "long_clip": functools.partial(_long_clip, checkout=checkouts.get("long_clip")),
        "clip_moe": functools.partial(_clip_moe, checkout=checkouts.get("clip_moe")),
    }
    return loader[case["target"]](folder / "model", case)


def nchw(images_BxHxWx3: np.ndarray) -> torch.Tensor:
    """Images as torch wants them."""
    return torch.from_numpy(images_BxHxWx3).permute(0, 3, 1, 2).contiguous()


def _nhwc(pixels_3xHxW: torch.Tensor) -> np.ndarray:
    return pixels_3xHxW.permute(1, 2, 0).numpy()


def register_timm(names: Mapping[str, Any]) -> None:
    """Makes timm know tiny models by the names that configs have."""
    open_clip_files.register_timm({k: v for k, v in names.items() if not timm.is_model(k)})


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Within it, a config may name its text model by a relative path."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def _compared(model: torch.nn.Module, keys: set[str]) -> list[str]:
    """The keys of a file against those of the model that it was loaded into."""
    # torch itself does without these counters, and sets them to zero.
    own = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    return [f"missing: {k}" for k in sorted(own - keys)] + [
        f"left over: {k}" for k in sorted(keys - own)
    ]


def _keys(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            found |= set(file.keys())
    return found


def _dual(model: torch.nn.Module) -> Callable[[Inputs], dict[str, torch.Tensor]]:
    """A model with OpenAI's methods."""

    def embed(inputs: Inputs) -> dict[str, torch.Tensor]:
        text = torch.from_numpy(inputs["text"]).long()
        return {
            "image_embedding": model.encode_image(nchw(inputs["image"])),
            "text_embedding": model.encode_text(text),
        }

    return embed


def _open_clip(folder: Path, case: Mapping[str, Any]) -> Loaded:
    name = f"local-dir:{folder}"
    with _inside(folder):
        model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    loaded = Loaded(f"open_clip.{type(model).__name__}", _dual(model))
    loaded.wrong = _compared(model, _keys(folder))
    loaded.pixels["transform"] = lambda image: _nhwc(transform(image))
    if case["texts"]:
        tokenizer = open_clip.get_tokenizer(name)
        loaded.ids = lambda texts: tokenizer(texts).numpy()
        loaded.embed_texts = lambda texts: model.encode_text(tokenizer(texts))
    return loaded


def _hugging_face(folder: Path, case: Mapping[str, Any]) -> Loaded:
    config = json.loads((folder / "config.json").read_text())
    architecture = config["architectures"][0]
    wrong = []
    for cls in (getattr(transformers, architecture), transformers.AutoModel):
        model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
        # `AutoModel` of a tower is the one without a projection.
        bare = cls is transformers.AutoModel and architecture.endswith("WithProjection")
        kinds = [kind for kind in info if not (bare and kind == "unexpected_keys")]
        wrong += [f"{kind}: {sorted(map(str, info[kind]))}" for kind in kinds if info[kind]]
        if not bare:
            chosen = model.eval()
    loaded = Loaded(f"transformers.{architecture}", _of_transformers(chosen, case), wrong=wrong)
    if (folder / "preprocessor_config.json").is_file():
        for backend in ("pil", "torchvision"):
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)
            loaded.pixels[backend] = functools.partial(_processed, processor)
    if case["texts"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        rows = functools.partial(
            tokenizer, padding="max_length", truncation=True, return_tensors="pt"
        )
        if loaded.pixels:
            whole = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
            loaded.pixels["AutoProcessor"] = functools.partial(_processed, whole.image_processor)
            rows = functools.partial(
                whole, padding="max_length", truncation=True, return_tensors="pt"
            )
            rows = functools.partial(_keyword, rows)
        loaded.ids = lambda texts: rows(texts)["input_ids"].numpy()
        loaded.embed_texts = lambda texts: _texts_of_transformers(chosen, case, dict(rows(texts)))
    return loaded


def _keyword(processor: Callable[..., Any], texts: list[str]) -> Any:
    return processor(text=texts)


def _processed(processor: Any, image: Image.Image) -> np.ndarray:
    found = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    return _nhwc(found) if found.ndim == 3 else found.numpy()


def _of_transformers(
    model: torch.nn.Module, case: Mapping[str, Any]
) -> Callable[[Inputs], dict[str, torch.Tensor]]:
    def embed(inputs: Inputs) -> dict[str, torch.Tensor]:
        given: dict[str, torch.Tensor] = {}
        if "image_shape" in inputs:
            rows, columns = inputs["image_shape"].T
            count = inputs["image"].shape[1]
            given["pixel_values"] = torch.from_numpy(inputs["image"])
            given["spatial_shapes"] = torch.from_numpy(inputs["image_shape"]).long()
            mask = np.arange(count) < (rows * columns)[:, None]
            given["pixel_attention_mask"] = torch.from_numpy(mask).int()
        elif "image" in inputs:
            given["pixel_values"] = nchw(inputs["image"])
        if "text" not in inputs:
            found = model(**given)
            return {"image_embedding": _first(found, "image_embeds", "pooler_output")}
        ids = torch.from_numpy(inputs["text"]).long()
        if not given:
            if case["pad"] is not None:
                given["attention_mask"] = (ids != case["pad"]).long()
            return {
                "text_embedding": _texts_of_transformers(model, case, {"input_ids": ids, **given})
            }
        found = model(input_ids=ids, **given)
        return {"image_embedding": found.image_embeds, "text_embedding": found.text_embeds}

    return embed


def _first(found: Any, *names: str) -> torch.Tensor:
    return next(v for v in (getattr(found, name, None) for name in names) if v is not None)


def _texts_of_transformers(
    model: torch.nn.Module, case: Mapping[str, Any], given: dict[str, Any]
) -> torch.Tensor:
    if hasattr(model, "get_text_features"):
        found = model.get_text_features(**given)
        return found if torch.is_tensor(found) else found.pooler_output
    found = model(**given)
    if case["pad"] is None:
        return _first(found, "text_embeds", "pooler_output")
    if case["pool"] == "mean":
        mask_BxL = given["attention_mask"][:, :, None]
        return (found.last_hidden_state * mask_BxL).sum(1) / mask_BxL.sum(1)
    return found.last_hidden_state[:, 0] if case["pool"] == "class" else found.pooler_output


def _timm(folder: Path, case: Mapping[str, Any]) -> Loaded:
    del case
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    loaded = Loaded(
        f"timm.{type(model).__name__}",
        lambda inputs: {"image_embedding": model(nchw(inputs["image"]))},
        wrong=_compared(model, _keys(folder)),
    )
    # A directory that came from timm keeps a margin that timm cuts off, and clipjax does not.
    if config["crop_pct"] == 1:
        loaded.pixels["transform"] = lambda image: _nhwc(transform(image))
    return loaded


def _state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a file that has no config beside it."""
    (file,) = folder.iterdir()
    return torch.load(file, map_location="cpu", weights_only=True)  # of safetensors too


def _in_float32(module: Any, name: str) -> Any:
    """Keeps a loader from rounding the weights to float16, so that numbers can be compared."""
    return unittest.mock.patch.object(module, name, lambda model: model)


def _openai(folder: Path, case: Mapping[str, Any]) -> Loaded:
    del case
    state = _state(folder)
    keys = set(state) - {"input_resolution", "context_length", "vocab_size"}
    (file,) = folder.iterdir()
    with _in_float32(open_clip.model, "convert_weights_to_fp16"):
        model = open_clip.openai.load_openai_model(str(file), precision="fp32", device="cpu")
    model = model.float().eval()
    return Loaded("open_clip.load_openai_model", _dual(model), wrong=_compared(model, keys))


def _long_clip(folder: Path, case: Mapping[str, Any], checkout: Path | None) -> Loaded:
    del case
    if checkout is None:
        raise FileNotFoundError("no checkout of Long-CLIP is given (--long-clip)")
    module = research._module(checkout / "model" / "model_longclip.py")
    state = _state(folder)
    with _in_float32(module, "convert_weights"):
        model = module.build_model(dict(state), load_from_clip=False)
    return Loaded("longclip.build_model", _dual(model.float()), wrong=_compared(model, set(state)))


def _clip_moe(folder: Path, case: Mapping[str, Any], checkout: Path | None) -> Loaded:
    if checkout is None:
        raise FileNotFoundError("no checkout of CLIP-MoE is given (--clip-moe)")
    module = research._module(checkout / "clipmoe" / "model_clipmoe.py")
    state, said = _state(folder), case["experts"]
    arguments = [said[name] for name in ("num_experts", "top_k", "dropout", "moe_layers")]
    with _in_float32(module, "convert_weights"):
        model = module.build_model(dict(state), load_from_clip=False, MoE_args=arguments)
    model.load_state_dict(state)
    return Loaded("clipmoe.build_model", _dual(model.float()), wrong=_compared(model, set(state)))
