"""Rows for timm's `VisionTransformer` and `Eva`, alone or as the trunk of an open_clip model.

The authors' own files of DINOv2 have the same keys but for three names, and a position for the class token.
"""

from collections.abc import Mapping
from typing import Any

from clipjax.convert.blocks import IMAGE_BLOCKS, linear, norm, separate_qkv
from clipjax.convert.layouts import CONV, FLAT, LEADING_1, LINEAR
from clipjax.convert.tables import Row, Zero

_ATTENTION = f"{IMAGE_BLOCKS}/attention"
_MLP = f"{IMAGE_BLOCKS}/mlp"


def rows(args: Mapping[str, Any], prefix: str = "") -> list[Row]:
    """Keys that begin with `prefix`, for the arguments of `timm_models`."""
    block = f"{prefix}blocks.{{i}}"
    pooled = args["fc_norm"] if args["fc_norm"] is not None else args["global_pool"] == "avg"
    return [
        Row(f"{prefix}cls_token", "image/class_token", LEADING_1),
        Row(
            f"{prefix}{'register_tokens' if args['original'] else 'reg_token'}",
            "image/register_tokens",
            LEADING_1,
        ),
        Row(f"{prefix}pos_embed", "image/position_embedding", LEADING_1),
        Row(f"{prefix}patch_embed.proj.weight", "image/stem/kernel", CONV),
        Row(f"{prefix}patch_embed.proj.bias", "image/stem/bias"),
        *norm(f"{prefix}norm_pre", "image/norm_pre"),
        *norm(f"{block}.norm1", f"{IMAGE_BLOCKS}/norm_1"),
        *_attention(args, f"{block}.attn"),
        Row(f"{block}.ls1.gamma", f"{IMAGE_BLOCKS}/scale_1/gamma"),
        *norm(f"{block}.norm2", f"{IMAGE_BLOCKS}/norm_2"),
        *_mlp(args, f"{block}.mlp"),
        Row(f"{block}.ls2.gamma", f"{IMAGE_BLOCKS}/scale_2/gamma"),
        *norm(f"{prefix}{'fc_norm' if pooled else 'norm'}", "image/norm_post"),
        *_pool(f"{prefix}attn_pool"),
        *linear(f"{prefix}head", "image_head/out"),
    ]


def zeros(args: Mapping[str, Any]) -> list[Zero]:
    """EVA's keys have no bias."""
    return [Zero(f"{IMAGE_BLOCKS}/attention/qkv_bias", (1,))] if args["eva"] else []


def _attention(args: Mapping[str, Any], source: str) -> list[Row]:
    if not args["qkv_fused"]:
        three = [f"{source}.{x}_proj" for x in "qkv"]
        projections = separate_qkv(three, _ATTENTION)
        if args["eva"]:
            projections = [row for row in projections if row.source != f"{source}.k_proj.bias"]
    elif args["eva"]:
        projections = [
            Row(f"{source}.qkv.weight", f"{_ATTENTION}/qkv_kernel", LINEAR),
            Row(f"{source}.q_bias", f"{_ATTENTION}/qkv_bias", FLAT, select=(0,)),
            Row(f"{source}.v_bias", f"{_ATTENTION}/qkv_bias", FLAT, select=(2,)),
        ]
    else:
        projections = [
            Row(f"{source}.qkv.weight", f"{_ATTENTION}/qkv_kernel", LINEAR),
            Row(f"{source}.qkv.bias", f"{_ATTENTION}/qkv_bias", FLAT),
        ]
    return [
        *projections,
        *norm(f"{source}.q_norm", f"{_ATTENTION}/query_norm"),
        *norm(f"{source}.k_norm", f"{_ATTENTION}/key_norm"),
        *norm(f"{source}.norm", f"{_ATTENTION}/norm"),
        *linear(f"{source}.proj", f"{_ATTENTION}/out"),
    ]


def _mlp(args: Mapping[str, Any], source: str) -> list[Row]:
    both, out = "fc1", "fc2"
    if args["mlp_layer"] == "swiglu":
        packed = [f"{_MLP}/{name}" for name in ("fc_gate", "fc_in")]
        both, out = ("w12", "w3") if args["original"] else (both, out)
        first = [
            Row(f"{source}.{both}.weight", tuple(f"{name}/kernel" for name in packed), LINEAR),
            Row(f"{source}.{both}.bias", tuple(f"{name}/bias" for name in packed)),
        ]
    elif args["swiglu_mlp"]:
        first = [
            *linear(f"{source}.fc1_g", f"{_MLP}/fc_gate"),
            *linear(f"{source}.fc1_x", f"{_MLP}/fc_in"),
        ]
    else:
        first = linear(f"{source}.fc1", f"{_MLP}/fc_in")
    return [
        *first,
        *norm(f"{source}.norm", f"{_MLP}/norm"),
        *linear(f"{source}.{out}", f"{_MLP}/fc_out"),
    ]


def _pool(source: str) -> list[Row]:
    """`AttentionPoolLatent`: keys and values are one matrix."""
    target = "image/pool"
    return [
        Row(f"{source}.latent", f"{target}/probe", LEADING_1),
        *linear(f"{source}.q", f"{target}/query"),
        Row(f"{source}.kv.weight", (f"{target}/key/kernel", f"{target}/value/kernel"), LINEAR),
        Row(f"{source}.kv.bias", (f"{target}/key/bias", f"{target}/value/bias")),
        *linear(f"{source}.proj", f"{target}/out"),
        *norm(f"{source}.norm", f"{target}/norm"),
        *linear(f"{source}.mlp.fc1", f"{target}/mlp/fc_in"),
        *linear(f"{source}.mlp.fc2", f"{target}/mlp/fc_out"),
    ]
