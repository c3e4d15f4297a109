"""big_vision's `.npz` in torch: by open_clip's own loader where it has one, else by the names in tools/parity."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import transformers
from parity import big_vision as parity

Arrays = dict[str, np.ndarray]
Embed = Callable[[Mapping[str, np.ndarray]], dict[str, torch.Tensor]]


def load(path: Path) -> tuple[str, Embed]:
    """(what loaded it, inputs -> embeddings)."""
    arrays = _arrays(path)
    trunk = "img/MAPHead_0/probe" in arrays and arrays["img/pos_embedding"].shape == (1, 9, 36)
    if trunk and "b" in arrays and _stored_in_float32(path):
        return "open_clip.convert.load_big_vision_weights", _by_open_clip(path, arrays)
    return "tools/parity/big_vision.py", _by_names(arrays)


def _arrays(path: Path) -> Arrays:
    """Float32 by big_vision's names, layers apart."""
    arrays: Arrays = {}
    with np.load(path) as file:
        for key in file.files:
            value, key = file[key], key.removeprefix("params/")
            if value.dtype == np.dtype("V2"):  # bfloat16, as raw bytes
                value = (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            value = value.astype(np.float32)
            if "/encoderblock/" in key:
                for layer, row in enumerate(value):
                    arrays[key.replace("/encoderblock/", f"/encoderblock_{layer}/")] = row
            else:
                arrays[key] = value
    return arrays


def _stored_in_float32(path: Path) -> bool:
    with np.load(path) as file:
        return all(file[key].dtype == np.float32 for key in file.files)


def _sizes(arrays: Arrays, tower: str) -> dict[str, int]:
    block = {"img": "img/Transformer/encoderblock", "txt": "txt/Encoder_0/encoderblock"}[tower]
    width, heads, _ = arrays[f"{block}_0/MultiHeadDotProductAttention_0/query/kernel"].shape
    layers = {m[1] for m in (re.match(block + r"_(\d+)/", key) for key in arrays) if m}
    return {
        "hidden_size": width,
        "intermediate_size": arrays[f"{block}_0/MlpBlock_0/Dense_0/kernel"].shape[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
    }


def _text_sizes(arrays: Arrays) -> dict[str, Any]:
    return _sizes(arrays, "txt") | {
        "vocab_size": arrays["txt/Embed_0/embedding"].shape[0],
        "max_position_embeddings": arrays["txt/pos_embedding"].shape[1],
        "projection_size": arrays["txt/head/kernel"].shape[1],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


def _by_open_clip(path: Path, arrays: Arrays) -> Embed:
    text = _text_sizes(arrays)
    width = text["hidden_size"]
    model = open_clip.CustomTextCLIP(
        embed_dim=36,
        vision_cfg=dict(
            image_size=24,
            timm_model_name="vit_so400nano_patch8_siglip_24",
            timm_pool="map",
            timm_proj="none",
        ),
        text_cfg=dict(
            context_length=text["max_position_embeddings"],
            vocab_size=text["vocab_size"],
            width=width,
            heads=text["num_attention_heads"],
            layers=text["num_hidden_layers"],
            mlp_ratio=np.nextafter(text["intermediate_size"] / width, np.inf),
            no_causal_mask=True,
            proj_bias=True,
            pool_type="last",
            norm_kwargs={"eps": 1e-6},
            act_kwargs={"approximate": "tanh"},
        ),
        init_logit_bias=-10,
    )
    open_clip.load_checkpoint(model, str(path))
    model.eval()
    return lambda inputs: {
        "image_embedding": model.encode_image(_nchw(inputs["image"])),
        "text_embedding": model.encode_text(_ids(inputs)),
    }


def _nchw(images_BxHxWx3: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images_BxHxWx3).permute(0, 3, 1, 2).contiguous()


def _ids(inputs: Mapping[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(inputs["text"]).long()


def _by_names(arrays: Arrays) -> Embed:
    """Transformers' SigLIP; of an image tower with a class token, timm's ViT."""
    naflex = arrays["img/embedding/kernel"].ndim == 2
    kernel = arrays["img/embedding/kernel"].shape
    patch = round((kernel[0] / 3) ** 0.5) if naflex else kernel[0]
    count = int(np.prod(arrays["img/pos_embedding"].shape[:-1]))
    if "img/MAPHead_0/probe" not in arrays:
        return _with_class_token(arrays, patch, round(count**0.5) * patch)
    state = parity._renamed(arrays, parity.HUGGING_FACE)
    parity._fused(state, "vision_model.head.attention.", "in_proj_weight", "in_proj_bias")
    vision = _sizes(arrays, "img") | {"patch_size": patch}
    vision |= {"num_patches": count} if naflex else {"image_size": round(count**0.5) * patch}
    family = transformers.Siglip2Config if naflex else transformers.SiglipConfig
    config = family(vision_config=vision, text_config=_text_sizes(arrays))
    model = (transformers.Siglip2Model if naflex else transformers.SiglipModel)(config).eval()
    for name in ("logit_scale", "logit_bias"):
        state[name] = state[name].reshape(1)
    model.load_state_dict(state, strict=True)

    def embed(inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        given = {"pixel_values": torch.from_numpy(inputs["image"])}
        if naflex:
            shape = inputs["image_shape"]
            mask = np.arange(inputs["image"].shape[1]) < shape.prod(1)[:, None]
            given["pixel_attention_mask"] = torch.from_numpy(mask).int()
            given["spatial_shapes"] = torch.from_numpy(shape).long()
        else:
            given["pixel_values"] = _nchw(inputs["image"])
        found = model(input_ids=_ids(inputs), **given)
        return {"image_embedding": found.image_embeds, "text_embedding": found.text_embeds}

    return embed


def _with_class_token(arrays: Arrays, patch: int, size: int) -> Embed:
    out, sizes = arrays["img/head/kernel"].shape[1], _sizes(arrays, "img")
    state = parity._renamed({k: v for k, v in arrays.items() if k.startswith("img/")}, parity.TIMM)
    for layer in range(sizes["num_hidden_layers"]):
        parity._fused(state, f"blocks.{layer}.attn.", "qkv.weight", "qkv.bias")
    state["pos_embed"] = state["pos_embed"][None]
    image_tower = timm.models.VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        mlp_ratio=sizes["intermediate_size"] / sizes["hidden_size"],
        no_embed_class=True,
        act_layer="gelu_tanh",
        num_classes=out,
    ).eval()
    image_tower.load_state_dict(state, strict=True)
    texts = {k: v for k, v in arrays.items() if k.startswith("txt/")}
    state = {
        name.removeprefix("text_model."): value
        for name, value in parity._renamed(texts, parity.HUGGING_FACE).items()
    }
    config = transformers.SiglipTextConfig(**_text_sizes(arrays))
    text_tower = transformers.SiglipTextModel(config).eval()
    text_tower.load_state_dict(state, strict=True)
    return lambda inputs: {
        "image_embedding": image_tower(_nchw(inputs["image"])),
        "text_embedding": text_tower(input_ids=_ids(inputs)).pooler_output,
    }
