"""open_clip's hub folders, `open_clip_config.json` and `open_clip_model.safetensors`, written and read by open_clip.

Where the image tower is a timm model, the config names the model only. The tiny ones here are registered under names
of their own; the golden's `timm` says {name: {architecture: timm's real model, model_args: what is changed}}.
"""

import copy
import functools
import json
import os
import pathlib
import tempfile
from typing import Any

import open_clip
import safetensors.torch
import timm
import torch
import transformers
from open_clip.push_to_hf_hub import save_config_for_hf

from parity import golden

WEIGHTS = "open_clip_model.safetensors"
VOCABULARY, CONTEXT = 45, 9
OPENAI = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}

VISION = {"image_size": 24, "layers": 2, "width": 36, "head_width": 12, "patch_size": 8}
TEXT = {
    "context_length": CONTEXT,
    "vocab_size": VOCABULARY,
    "width": 32,
    "heads": 4,
    "layers": 3,
}
SIGLIP_TEXT = {
    **TEXT,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
CLIP_IDS = golden.clip_text(VOCABULARY, CONTEXT)


def register_timm(timm_models: dict[str, dict[str, Any]]) -> None:
    """Makes timm know tiny models: each is a real model function called with other arguments."""
    for name, model in timm_models.items():
        function = timm.models.model_entrypoint(model["architecture"])

        def tiny(pretrained=False, *, function, model_args, **kwargs):
            return function(pretrained=pretrained, **(model_args | kwargs))

        tiny = functools.partial(tiny, function=function, model_args=model["model_args"])
        tiny.__name__, tiny.__module__ = name, function.__module__
        timm.models.register_model(tiny)


def _case(
    config: dict[str, Any],
    text: list[list[int]],
    preprocess: dict[str, Any] = OPENAI,
    timm_models: dict[str, dict[str, Any]] | None = None,
    text_config: transformers.PretrainedConfig | None = None,
) -> dict[str, Any]:
    register_timm(timm_models or {})
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that the config may name its text model by a relative path
        try:
            if text_config is not None:
                text_config.save_pretrained(config["text_cfg"]["hf_model_name"])
            return _record(config, text, preprocess, timm_models, pathlib.Path(folder))
        finally:
            os.chdir(here)


def _record(config, text, preprocess, timm_models, folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    blank = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    save_config_for_hf(blank, path, model_config=copy.deepcopy(config))
    safetensors.torch.save_file(blank.state_dict(), folder / WEIGHTS)
    state = blank.state_dict()
    order = golden.safetensors_order(folder / WEIGHTS)
    tensors = golden.describe({key: state[key] for key in order})
    safetensors.torch.save_file(golden.filled(tensors), folder / WEIGHTS)
    model = open_clip.create_model(f"local-dir:{folder}").eval()  # loads with strict=True
    inputs = {"images": golden.images(3, config["vision_cfg"]["image_size"]), "text": text}
    files = {
        str(file.relative_to(folder)): json.loads(file.read_text())
        for file in sorted(folder.rglob("*.json"))
    }
    return {
        "library": golden.versions("open_clip_torch", "timm", "transformers"),
        "architecture": f"open_clip.{type(model).__name__}",
        "files": files,
        **({"timm": timm_models} if timm_models else {}),
        "weights_file": WEIGHTS,
        "tensors": tensors,
        "inputs": inputs,
        "outputs": golden.outputs(
            model.encode_image(golden.nchw(inputs["images"])),
            model.encode_text(torch.tensor(text)),
            model.logit_scale,
            model.logit_bias,
        ),
    }


def _clip(vision: dict | None = None, text: dict | None = None, **top: Any) -> dict[str, Any]:
    config = {
        "embed_dim": 28,
        "vision_cfg": VISION | (vision or {}),
        "text_cfg": TEXT | (text or {}),
        **top,
    }
    return _case(config, CLIP_IDS)


def head_width() -> dict[str, Any]:
    """Heads and MLPs of other sizes than the usual, as of ViT-g and ViT-bigG, and layer scale."""
    vision = {"width": 30, "head_width": 10, "mlp_ratio": 2.77, "ls_init_value": 0.1}
    return _clip(vision, {"mlp_ratio": 3.19})


def resnet() -> dict[str, Any]:
    """A ModifiedResNet; its heads are 32 widths over `head_width`."""
    return _clip(
        {"image_size": 64, "layers": [1, 2, 1, 1], "width": 6, "head_width": 64, "patch_size": None}
    )


def clipa() -> dict[str, Any]:
    """As ViT-L-14-CLIPA: no first norm, mean before the last norm; text without a causal mask, pooled at its end."""
    vision = VISION | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    text = TEXT | {"pool_type": "last", "no_causal_mask": True}
    # BERT's ids, without the separator at the end; padded with zeros, which the last position then is.
    ids = golden.padded([[7, 30, 12], [9], [*range(20, 29)]], CONTEXT, 0)
    return _case({"embed_dim": 28, "vision_cfg": vision, "text_cfg": text}, ids)


def _timm(
    tiny: str, architecture: str, model_args: dict[str, Any], vision: dict[str, Any], **top: Any
) -> dict[str, Any]:
    model = {tiny: {"architecture": architecture, "model_args": model_args}}
    preprocess = top.pop("preprocess", OPENAI)
    text = top.pop("text", CLIP_IDS)
    vision = {
        "image_size": model_args["img_size"],
        "timm_model_name": tiny,
        "timm_model_pretrained": False,
        **vision,
    }
    config = {"embed_dim": 28, "text_cfg": TEXT, "custom_text": True, **top, "vision_cfg": vision}
    return _case(config, text, preprocess, model)


_SIGLIP_VIT = {
    "img_size": 24,
    "patch_size": 8,
    "embed_dim": 36,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2.8,
}


def siglip() -> dict[str, Any]:
    """As ViT-B-16-SigLIP: both towers with exact GELU."""
    return _timm(
        "vit_tiny_siglip",
        "vit_base_patch16_siglip_224",
        _SIGLIP_VIT,
        {"timm_pool": "map", "timm_proj": "none"},
        embed_dim=36,
        init_logit_bias=-10,
        text_cfg=SIGLIP_TEXT,
        preprocess=SIGLIP,
        text=golden.siglip_text(CONTEXT, pad=1),
    )


def siglip2() -> dict[str, Any]:
    """As ViT-SO400M-16-SigLIP2-256: both towers with tanh GELU, the text tower with its own MLP ratio."""
    return _timm(
        "vit_tiny_siglip2",
        "vit_so400m_patch16_siglip_256",
        _SIGLIP_VIT,
        {"timm_pool": "map", "timm_proj": "none"},
        embed_dim=36,
        init_logit_bias=-10,
        text_cfg=SIGLIP_TEXT | {"mlp_ratio": 3.7362, "act_kwargs": {"approximate": "tanh"}},
        preprocess=SIGLIP,
        text=golden.siglip_text(CONTEXT, pad=0),
    )


_EVA_VIT = {"img_size": 24, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3}
_EVA = {"timm_pool": "token", "timm_proj": None}


def eva01() -> dict[str, Any]:
    """As EVA01-g-14: no rotary angles, biases of queries and values apart."""
    arguments = _EVA_VIT | {"mlp_ratio": 2.8}
    return _timm("eva_tiny", "eva_giant_patch14_224", arguments, _EVA)


def eva02_base() -> dict[str, Any]:
    """As EVA02-B-16: rotary angles, SwiGLU, norms within attention and MLP."""
    arguments = _EVA_VIT | {"ref_feat_shape": [3, 3]}
    return _timm("eva02_tiny", "eva02_base_patch16_clip_224", arguments, _EVA)


def eva02_large_336() -> dict[str, Any]:
    """Its grid, 4 × 4, is not the one its rotary angles are scaled to, 3 × 3."""
    arguments = _EVA_VIT | {"img_size": 32, "ref_feat_shape": [3, 3]}
    return _timm("eva02_tiny_32", "eva02_large_patch14_clip_336", arguments, _EVA)


def eva02_enormous() -> dict[str, Any]:
    """As EVA02-E-14: norms after attention and MLP."""
    arguments = _EVA_VIT | {"mlp_ratio": 3.3}
    return _timm("eva02_tiny_post", "eva02_enormous_patch14_clip_224", arguments, _EVA)


def coca() -> dict[str, Any]:
    """As coca_ViT-B-32: pooling by attention, a class token after the text, a decoder that is not run."""
    config = {
        "embed_dim": 28,
        "vision_cfg": VISION
        | {
            "attentional_pool": True,
            "attn_pooler_queries": 5,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "width": 32,
            "heads": 4,
            "layers": 1,
            "attn_pooler_heads": 4,
        },
        "custom_text": True,
    }
    return _case(config, CLIP_IDS)


def xlm_roberta() -> dict[str, Any]:
    """As xlm-roberta-base-ViT-B-32: the text config names a folder of a transformers model."""
    text_config = transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=76,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        attn_implementation="eager",
    )
    config = {
        "embed_dim": 28,
        "vision_cfg": VISION,
        "text_cfg": {
            "hf_model_name": "tiny-xlm-roberta",
            "hf_tokenizer_name": "tiny-xlm-roberta",
            "hf_pooler_type": "mean_pooler",
        },
    }
    ids = golden.padded([[0, 30, 12, 2], [0, 9, 2], [0, *range(20, 27), 2]], CONTEXT, 1)
    return _case(config, ids, text_config=text_config)


CASES = {
    "open_clip_vit": _clip,
    "open_clip_vit_quickgelu": lambda: _clip(quick_gelu=True),
    "open_clip_vit_head_width": head_width,
    "open_clip_vit_nonscalar": lambda: _clip(nonscalar_logit_scale=True, init_logit_bias=-10),
    "open_clip_custom_text": lambda: _clip(custom_text=True),
    "open_clip_resnet": resnet,
    "open_clip_clipa": clipa,
    "open_clip_siglip": siglip,
    "open_clip_siglip2": siglip2,
    "open_clip_eva01": eva01,
    "open_clip_eva02_base": eva02_base,
    "open_clip_eva02_large_336": eva02_large_336,
    "open_clip_eva02_enormous": eva02_enormous,
    "open_clip_coca": coca,
    "open_clip_xlm_roberta": xlm_roberta,
}
