"""Long-CLIP and CLIP-MoE: OpenAI's names with a second table of 248 positions, and with experts.

Their models are single files of torch alone, imported from the folders of their checkouts (the goldens are from
3966af9 of Long-CLIP and 971b29f of CLIP-MoE). Their loaders round matrices to float16 on the way; the models here take
the float32 numbers as they are.
"""

import importlib.util
import pathlib
import types
from collections.abc import Callable
from typing import Any

import torch

from parity import golden

VOCABULARY, CONTEXT = 45, 248
SIZES = {
    "embed_dim": 56,
    "image_resolution": 24,
    "vision_layers": 3,
    "vision_width": 128,  # heads are widths over 64
    "vision_patch_size": 8,
    "context_length": CONTEXT,
    "vocab_size": VOCABULARY,
    "transformer_width": 192,
    "transformer_heads": 3,
    "transformer_layers": 2,
    "load_from_clip": False,
}
MOE = {"num_experts": 3, "top_k": 2, "dropout": 0, "moe_layers": 2}


def _module(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _texts() -> list[list[int]]:
    """Texts that end within the first 20 positions, within OpenAI's 77, and beyond."""
    rows = []
    for length in (5, 33, 202):
        words = [3 + (7 * place + length) % 40 for place in range(length)]
        rows.append([VOCABULARY - 2, *words, VOCABULARY - 1])
    return golden.padded(rows, CONTEXT, 0)


def _require_clear_routes(model: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """Raises ValueError where the last expert taken and the first one left are so close that rounding may swap them."""
    text_BxL = torch.tensor(inputs["text"])
    matters_BxL = torch.arange(CONTEXT) <= text_BxL.argmax(1, keepdim=True)
    images = golden.nchw(inputs["images"])
    _, image_logits = model.encode_image(images, router_output=True)  # [layers, T · B, experts]
    _, text_logits = model.encode_text(text_BxL, router_output=True)
    text_logits = text_logits[:, matters_BxL.T.flatten()]
    for name, logits in (("images", image_logits), ("text", text_logits)):
        share = logits.softmax(-1).sort(-1, descending=True).values
        margin = (share[..., MOE["top_k"] - 1] - share[..., MOE["top_k"]]).min().item()
        if margin < 3e-4:
            raise ValueError(f"the experts of some token of the {name} differ by {margin} only")


def _case(module: types.ModuleType, weights_file: str, **more: Any) -> dict[str, Any]:
    model = module.CLIP(**SIZES, **more)
    tensors = golden.describe(model.state_dict())
    golden.load(model, tensors)
    inputs = {"images": golden.images(3, SIZES["image_resolution"]), "text": _texts()}
    if more:
        _require_clear_routes(model, inputs)
    return {
        "library": golden.versions(),
        "architecture": f"{module.__name__}.CLIP",
        "files": {},
        "weights_file": weights_file,
        "tensors": tensors,
        "inputs": inputs,
        "outputs": golden.outputs(
            model.encode_image(golden.nchw(inputs["images"])),
            model.encode_text(torch.tensor(inputs["text"])),
            model.logit_scale,
        ),
    }


def cases(
    long_clip: pathlib.Path | None, clip_moe: pathlib.Path | None
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The cases whose checkouts are there. A MoE's file does not say how many experts a token takes: `moe` does."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    if long_clip is not None:
        module = _module(long_clip / "model" / "model_longclip.py")
        found["long_clip"] = lambda: _case(module, "longclip.pt")
    if clip_moe is not None:
        moe_module = _module(clip_moe / "clipmoe" / "model_clipmoe.py")
        found["clip_moe"] = lambda: {
            "moe": MOE,
            **_case(moe_module, "clip_moe.pt", MoE_args=list(MOE.values())),
        }
    return found
