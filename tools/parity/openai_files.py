"""OpenAI's CLIP files: a bare state dict, partly in float16, from which the architecture is read off.

open_clip's CLIP with QuickGELU is the same network and has the published loader. The published files are TorchScript
archives; three integers (`input_resolution` and so on) stand among their tensors. Heads are widths over 64.
"""

from typing import Any

import open_clip.model
import torch

from parity import golden

VOCABULARY, CONTEXT = 45, 9


def _case(name: str, vision: dict[str, Any], text: dict[str, Any], size: int) -> dict[str, Any]:
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, **text}
    vision = open_clip.model.CLIPVisionCfg(image_size=size, **vision)
    blank = open_clip.model.CLIP(56, vision, open_clip.model.CLIPTextCfg(**text), quick_gelu=True)
    open_clip.model.convert_weights_to_fp16(blank)
    integers = {"input_resolution": size, "context_length": CONTEXT, "vocab_size": VOCABULARY}
    state: dict[str, torch.Tensor] = {}
    for key, value in blank.state_dict().items():
        if "." in key and "input_resolution" not in state:  # after the network's own parameters
            state |= {name: torch.tensor(number) for name, number in integers.items()}
        state[key] = value
    tensors = golden.describe(state)
    model = open_clip.model.build_model_from_openai_state_dict(golden.filled(tensors)).float()
    inputs = {"images": golden.images(3, size), "text": golden.clip_text(VOCABULARY, CONTEXT)}
    return {
        "library": golden.versions("open_clip_torch"),
        "architecture": "open_clip.model.CLIP",
        "files": {},
        "weights_file": name,
        "tensors": tensors,
        "inputs": inputs,
        "outputs": golden.outputs(
            model.encode_image(golden.nchw(inputs["images"])),
            model.encode_text(torch.tensor(inputs["text"])),
            model.logit_scale,
        ),
    }


def vit() -> dict[str, Any]:
    """Two heads beside three, and a text tower deeper than the image tower."""
    vision = {"layers": 2, "width": 128, "patch_size": 8}
    return _case("ViT-T-8.pt", vision, {"width": 192, "heads": 3, "layers": 3}, 24)


def resnet() -> dict[str, Any]:
    """A ModifiedResNet: three stem convolutions, four stages, attention pooling of a 2 × 2 grid."""
    vision = {"layers": (1, 2, 1, 1), "width": 6, "patch_size": None}
    return _case("RN6.pt", vision, {"width": 128, "heads": 2, "layers": 2}, 64)


CASES = {"openai_vit": vit, "openai_resnet": resnet}
