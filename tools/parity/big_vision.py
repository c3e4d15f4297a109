"""big_vision's `.npz` files (SigLIP, SigLIP 2, LiT): shapes as its models make them, outputs by transformers and timm.

big_vision is no package, and its published models are known by their ports. The mapping here is written from its
models (vit.py, text_transformer.py, naflex_vit.py, two_towers.py) for this purpose alone. Files have their keys under
`params/` or at the root, and layers apart (`encoderblock_3/…`) or, trained with a scan, stacked (`encoderblock/…`).
"""

import re
from typing import Any

import numpy as np
import timm
import torch
import transformers

from parity import golden, hugging_face
from tests.convert import parity_weights

Shapes = dict[str, tuple[int, ...]]
IMAGE = {"width": 36, "heads": 3, "mlp": 100, "layers": 2}
TEXT = {"width": 32, "heads": 4, "mlp": 84, "layers": 3}
VOCABULARY, CONTEXT, PATCH, GRID = 45, 9, 8, 3


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}/bias": (width,), f"{name}/scale": (width,)}


def _dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/bias": (outputs,), f"{name}/kernel": (inputs, outputs)}


def _attention(name: str, width: int, heads: int) -> Shapes:
    depth = width // heads
    shapes = {f"{name}/out/bias": (width,), f"{name}/out/kernel": (heads, depth, width)}
    for part in ("query", "key", "value"):
        shapes |= {
            f"{name}/{part}/bias": (heads, depth),
            f"{name}/{part}/kernel": (width, heads, depth),
        }
    return shapes


def _mlp(name: str, width: int, mlp: int) -> Shapes:
    return _dense(f"{name}/Dense_0", width, mlp) | _dense(f"{name}/Dense_1", mlp, width)


def _encoder(name: str, sizes: dict[str, int], scan: bool) -> Shapes:
    width = sizes["width"]
    block = _norm("LayerNorm_0", width) | _norm("LayerNorm_1", width)
    block |= _attention("MultiHeadDotProductAttention_0", width, sizes["heads"])
    block |= _mlp("MlpBlock_0", width, sizes["mlp"])
    shapes = _norm(f"{name}/encoder_norm", width)
    for key, shape in block.items():
        if scan:
            shapes[f"{name}/encoderblock/{key}"] = (sizes["layers"], *shape)
        for layer in range(0 if scan else sizes["layers"]):
            shapes[f"{name}/encoderblock_{layer}/{key}"] = shape
    return shapes


def _map_head(width: int, heads: int, mlp: int, **_: int) -> Shapes:
    name = "img/MAPHead_0"
    return {
        f"{name}/probe": (1, 1, width),
        **_norm(f"{name}/LayerNorm_0", width),
        **_attention(f"{name}/MultiHeadDotProductAttention_0", width, heads),
        **_mlp(f"{name}/MlpBlock_0", width, mlp),
    }


def _text(out: int, scan: bool) -> Shapes:
    width = TEXT["width"]
    return {
        "txt/Embed_0/embedding": (VOCABULARY, width),
        "txt/pos_embedding": (1, CONTEXT, width),
        **_encoder("txt/Encoder_0", TEXT, scan),
        **_dense("txt/head", width, out),
    }


def _stem(naflex: bool = False) -> Shapes:
    width = IMAGE["width"]
    if naflex:
        return {
            **_dense("img/embedding", 3 * 4 * 4, width),
            "img/pos_embedding": (4, 4, width),
        }
    return {
        "img/embedding/bias": (width,),
        "img/embedding/kernel": (PATCH, PATCH, 3, width),
        "img/pos_embedding": (1, GRID * GRID, width),
    }


def _siglip_shapes(scan: bool, naflex: bool = False) -> Shapes:
    shapes = _stem(naflex) | _encoder("img/Transformer", IMAGE, scan) | _map_head(**IMAGE)
    return shapes | _text(IMAGE["width"], scan) | {"t": (1,), "b": (1,)}


def _lit_shapes(out: int) -> Shapes:
    """A softmax model: the image's class token is projected, and there is no bias."""
    shapes = _stem() | {"img/cls": (1, 1, IMAGE["width"])} | _dense("img/head", IMAGE["width"], out)
    shapes |= _encoder("img/Transformer", IMAGE, scan=False) | _text(out, scan=False)
    return shapes | {"t": (1,)}


def _tensors(shapes: Shapes, root: str) -> golden.Tensors:
    """In the order of a flattened tree: sorted at every level."""
    names = sorted((root + key for key in shapes), key=lambda name: name.split("/"))
    return {name: ["F32", list(shapes[name.removeprefix(root)])] for name in names}


def _layers_apart(tensors: golden.Tensors, root: str) -> dict[str, np.ndarray]:
    """The file's arrays by big_vision's names without the root, stacked layers taken apart."""
    arrays = {}
    for name, value in parity_weights.tensors({"tensors": tensors}).items():
        key = name.removeprefix(root)
        if "/encoderblock/" in key:
            for layer, row in enumerate(value):
                arrays[key.replace("/encoderblock/", f"/encoderblock_{layer}/")] = row
        else:
            arrays[key] = value
    return arrays


def _torch_layout(key: str, value: np.ndarray) -> np.ndarray:
    """[out, in] matrices, OIHW patch embeddings, flat biases; all else as it is."""
    if key.endswith("pos_embedding"):
        return value.reshape(-1, value.shape[-1])
    if key.endswith("bias"):
        return value.reshape(-1)
    if not key.endswith("kernel"):
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if re.search(r"(query|key|value)/kernel$", key):
        return value.reshape(value.shape[0], -1).T
    return value.reshape(-1, value.shape[-1]).T


def _renamed(
    arrays: dict[str, np.ndarray], names: list[tuple[str, str]]
) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in arrays.items():
        name = key
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        state[name] = torch.from_numpy(np.array(_torch_layout(key, value)))
    return state


def _fused(state: dict[str, torch.Tensor], module: str, weight: str, bias: str) -> None:
    """Replaces `module`'s q, k and v, as they lie apart, by one matrix and one vector."""
    for end, name in (("weight", weight), ("bias", bias)):
        parts = [state.pop(f"{module}{letter}_proj.{end}") for letter in "qkv"]
        state[module + name] = torch.cat(parts)


BLOCK = [
    (r"LayerNorm_0/", "layer_norm1."),
    (r"LayerNorm_1/", "layer_norm2."),
    (r"MlpBlock_0/Dense_0/", "mlp.fc1."),
    (r"MlpBlock_0/Dense_1/", "mlp.fc2."),
    (r"MultiHeadDotProductAttention_0/out/", "self_attn.out_proj."),
    (r"MultiHeadDotProductAttention_0/(q|k|v)\w+/", r"self_attn.\1_proj."),
    (r"\.(kernel|scale)$", ".weight"),
]
HUGGING_FACE = [
    (r"^img/embedding/", "vision_model.embeddings.patch_embedding."),
    (r"^img/pos_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^img/Transformer/encoder_norm/", "vision_model.post_layernorm."),
    (r"^img/Transformer/encoderblock_(\d+)/", r"vision_model.encoder.layers.\1."),
    (r"^img/MAPHead_0/LayerNorm_0/", "vision_model.head.layernorm."),
    (r"^img/MAPHead_0/MultiHead\w+/out/", "vision_model.head.attention.out_proj."),
    (r"^img/MAPHead_0/MultiHead\w+/(q|k|v)\w+/", r"vision_model.head.attention.\1_proj."),
    (r"^img/MAPHead_0/", "vision_model.head."),
    (r"^txt/Embed_0/embedding$", "text_model.embeddings.token_embedding.weight"),
    (r"^txt/pos_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^txt/Encoder_0/encoder_norm/", "text_model.final_layer_norm."),
    (r"^txt/Encoder_0/encoderblock_(\d+)/", r"text_model.encoder.layers.\1."),
    (r"^txt/head/", "text_model.head."),
    (r"^t$", "logit_scale"),
    (r"^b$", "logit_bias"),
    *BLOCK,
]
TIMM = [
    (r"^img/embedding/", "patch_embed.proj."),
    (r"^img/pos_embedding$", "pos_embed"),
    (r"^img/cls$", "cls_token"),
    (r"^img/head/", "head."),
    (r"^img/Transformer/encoder_norm/", "norm."),
    (r"^img/Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    *BLOCK,
    (r"layer_norm", "norm"),
    (r"self_attn\.out_proj", "attn.proj"),
    (r"self_attn\.", "attn."),
]


def _golden(
    tensors: golden.Tensors, inputs: dict, outputs: dict, *libraries: str
) -> dict[str, Any]:
    return {
        "library": golden.versions(*libraries),
        "architecture": "big_vision.models.proj.image_text.two_towers",
        "files": {},
        "weights_file": "two_towers.npz",
        "tensors": tensors,
        "inputs": inputs,
        "outputs": outputs,
    }


def _sizes(sizes: dict[str, int]) -> dict[str, int]:
    return {
        "hidden_size": sizes["width"],
        "intermediate_size": sizes["mlp"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
    }


def _text_config(out: int, **ids: int) -> dict[str, Any]:
    return _sizes(TEXT) | {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "projection_size": out,
        "bos_token_id": 2,
        "eos_token_id": 1,
        **ids,
    }


def siglip(scan: bool, root: str) -> dict[str, Any]:
    """SigLIP of one image size; `root` is "params/" or nothing."""
    tensors = _tensors(_siglip_shapes(scan), root)
    state = _renamed(_layers_apart(tensors, root), HUGGING_FACE)
    _fused(state, "vision_model.head.attention.", "in_proj_weight", "in_proj_bias")
    config = transformers.SiglipConfig(
        vision_config=_sizes(IMAGE) | {"image_size": PATCH * GRID, "patch_size": PATCH},
        text_config=_text_config(IMAGE["width"], pad_token_id=1),
        attn_implementation="eager",
    )
    model = transformers.SiglipModel(config).eval()
    model.load_state_dict(state, strict=True)
    inputs = {
        "images": golden.images(3, PATCH * GRID),
        "text": golden.siglip_text(CONTEXT, pad=1),
    }
    return _golden(tensors, inputs, hugging_face.pair(model, inputs), "transformers")


def naflex() -> dict[str, Any]:
    """SigLIP 2 NaFlex: a square table of positions, patches embedded by a matrix."""
    root = "params/"
    tensors = _tensors(_siglip_shapes(scan=False, naflex=True), root)
    state = _renamed(_layers_apart(tensors, root), HUGGING_FACE)
    _fused(state, "vision_model.head.attention.", "in_proj_weight", "in_proj_bias")
    config = transformers.Siglip2Config(
        vision_config=_sizes(IMAGE) | {"num_patches": 16, "patch_size": 4},
        text_config=_text_config(IMAGE["width"], pad_token_id=0),
        attn_implementation="eager",
    )
    model = transformers.Siglip2Model(config).eval()
    model.load_state_dict(state, strict=True)
    inputs = hugging_face.NAFLEX_INPUTS | {"text": golden.siglip_text(CONTEXT, pad=0)}
    return _golden(tensors, inputs, hugging_face.pair(model, inputs), "transformers")


def lit() -> dict[str, Any]:
    """A class token after the positions, as timm's `no_embed_class`; the text tower is SigLIP's."""
    out = 28
    tensors = _tensors(_lit_shapes(out), root="")
    arrays = _layers_apart(tensors, root="")
    state = _renamed({k: v for k, v in arrays.items() if k.startswith("img/")}, TIMM)
    for layer in range(IMAGE["layers"]):
        _fused(state, f"blocks.{layer}.attn.", "qkv.weight", "qkv.bias")
    state["pos_embed"] = state["pos_embed"][None]
    image_tower = timm.models.VisionTransformer(
        img_size=PATCH * GRID,
        patch_size=PATCH,
        embed_dim=IMAGE["width"],
        depth=IMAGE["layers"],
        num_heads=IMAGE["heads"],
        mlp_ratio=IMAGE["mlp"] / IMAGE["width"],
        no_embed_class=True,
        act_layer="gelu_tanh",
        num_classes=out,
    ).eval()
    image_tower.load_state_dict(state, strict=True)
    state = _renamed({k: v for k, v in arrays.items() if k.startswith("txt/")}, HUGGING_FACE)
    config = transformers.SiglipTextConfig(
        **_text_config(out, pad_token_id=1), attn_implementation="eager"
    )
    text_tower = transformers.SiglipTextModel(config).eval()
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    text_tower.load_state_dict(state, strict=True)
    inputs = {
        "images": golden.images(3, PATCH * GRID),
        "text": golden.siglip_text(CONTEXT, pad=1),
    }
    outputs = golden.outputs(
        image_tower(golden.nchw(inputs["images"])),
        text_tower(input_ids=torch.tensor(inputs["text"])).pooler_output,
        torch.from_numpy(arrays["t"]),
    )
    return _golden(tensors, inputs, outputs, "timm", "transformers")


CASES = {
    "big_vision_siglip": lambda: siglip(scan=False, root="params/"),
    "big_vision_siglip_scanned": lambda: siglip(scan=True, root=""),
    "big_vision_naflex": naflex,
    "big_vision_lit": lit,
}
