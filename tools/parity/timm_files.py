"""timm's folders: `config.json` and `model.safetensors`, as its push_to_hf_hub writes them.

The tiny models are timm's own with other arguments, which timm writes to the config's `model_args` and reads there.
"""

import json
import pathlib
import tempfile
from typing import Any

import safetensors.torch
import timm
from timm.models._hub import save_for_hf

from parity import golden

WEIGHTS = "model.safetensors"
SIZES = {"img_size": 24, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3}


def case(architecture: str, num_classes: int = 0, **arguments: Any) -> dict[str, Any]:
    """One golden: `image_embedding` and `logits` are what the model returns, `pooled` what its head takes."""
    arguments = SIZES | arguments
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        blank = timm.create_model(architecture, num_classes=num_classes, **arguments)
        save_for_hf(blank, folder, safe_serialization=True)
        state = safetensors.torch.load_file(folder / WEIGHTS)
        order = golden.safetensors_order(folder / WEIGHTS)
        tensors = golden.describe({key: state[key] for key in order})
        safetensors.torch.save_file(golden.filled(tensors), folder / WEIGHTS)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        files = {"config.json": json.loads((folder / "config.json").read_text())}
    inputs = {"images": golden.images(3, arguments["img_size"])}
    tokens_BxTxW = model.forward_features(golden.nchw(inputs["images"]))
    pooled_BxW = model.forward_head(tokens_BxTxW, pre_logits=True)
    found = model.forward_head(tokens_BxTxW)
    more = {"logits": found} if num_classes else {}
    return {
        "library": golden.versions("timm"),
        "architecture": f"timm.{type(model).__name__}",
        "files": files,
        "weights_file": WEIGHTS,
        "tensors": tensors,
        "inputs": inputs,
        "outputs": golden.outputs(image=found, pooled=pooled_BxW, tokens=tokens_BxTxW[:1], **more),
    }


CASES = {
    "timm_vit": lambda: case("vit_base_patch16_224", num_classes=11, mlp_ratio=2.8),
    "timm_vit_avg": lambda: case("vit_base_patch16_224", global_pool="avg", mlp_ratio=2.8),
    "timm_vit_clip": lambda: case("vit_base_patch16_clip_224", num_classes=28, mlp_ratio=2.8),
    "timm_vit_clip_quickgelu": lambda: case(
        "vit_base_patch16_clip_quickgelu_224", num_classes=28, mlp_ratio=2.8
    ),
    "timm_siglip": lambda: case("vit_base_patch16_siglip_224", mlp_ratio=2.8),
    "timm_siglip_gap": lambda: case("vit_base_patch16_siglip_gap_224", mlp_ratio=2.8),
    "timm_dinov2": lambda: case("vit_small_patch14_dinov2", mlp_ratio=2.8),
    "timm_dinov2_reg4": lambda: case("vit_small_patch14_reg4_dinov2", mlp_ratio=2.8),
    "timm_dinov2_giant": lambda: case("vit_giant_patch14_dinov2"),
    "timm_eva02_clip": lambda: case(
        "eva02_base_patch16_clip_224", num_classes=28, ref_feat_shape=[3, 3]
    ),
}
