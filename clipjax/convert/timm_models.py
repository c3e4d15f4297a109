"""timm's vision transformers by name: `vit_base_patch16_siglip_224`, `eva02_large_patch14_clip_336`, ...

A name gives the arguments of timm's `VisionTransformer` or `Eva`; what a config.json of timm adds (`model_args`) goes
on top of them; and the arguments give the image tower.
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.convert import timm_names
from clipjax.convert.express import differences
from clipjax.errors import UserError
from clipjax.models import image_section

# Width, depth, heads, MLP ratio.
_SIZES = {
    "tiny": (192, 12, 3, 4),
    "small": (384, 12, 6, 4),
    "medium": (512, 12, 8, 4),
    "base": (768, 12, 12, 4),
    "large": (1024, 24, 16, 4),
    "huge": (1280, 32, 16, 4),
    "giant": (1408, 40, 16, 48 / 11),
    "gigantic": (1664, 48, 16, 64 / 13),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4),
}
_EVA_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "enormous": (1792, 64, 16),
}
_VIT = re.compile(
    r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)"
    r"(?P<kind>|_clip|_clip_quickgelu|_siglip|_siglip_gap|_reg4_dinov2|_dinov2)(_(?P<px>\d+))?"
)
_EVA = re.compile(r"eva02_(?P<size>[a-z]+)_patch(?P<patch>\d+)_clip_(?P<px>\d+)")
_EVA_GIANT = re.compile(r"eva_giant_patch14(?P<clip>_clip)?_(?P<px>\d+)")

# SigLIP's ports have the exact GELU but for these, whose training had the other one.
_TANH = (
    "vit_base_patch32_siglip",
    "vit_large_patch16_siglip_512",
    "vit_large_patch16_siglip_gap_512",
    "vit_so400m_patch16_siglip",
    "vit_giantopt_patch16_siglip",
)

NAMES = (
    "vit_SIZE_patchP[_clip|_clip_quickgelu|_siglip|_siglip_gap|_dinov2|_reg4_dinov2]_PX, "
    "eva02_SIZE_patchP_clip_PX, eva_giant_patch14_PX"
)

DEFAULTS: dict[str, Any] = dict(
    eva=False,
    img_size=224,
    qkv_bias=True,
    qkv_fused=True,
    qk_norm=False,
    init_values=None,
    class_token=True,
    no_embed_class=False,
    reg_tokens=0,
    pre_norm=False,
    fc_norm=None,
    global_pool="token",
    act_layer="gelu",
    mlp_layer="mlp",
    eps=1e-6,
    swiglu_mlp=False,
    scale_mlp=False,
    scale_attn_inner=False,
    use_post_norm=False,
    use_rot_pos_emb=False,
    ref_feat_shape=None,
    original=False,  # no argument of timm's: whether the keys are those of DINOv2's authors
)
# Arguments that change nothing of what is computed here.
_IGNORED = {"in_chans", "num_classes", "dynamic_img_size", "dynamic_img_pad", "strict_img_size"}


def arguments(name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of the architecture `name`, with those of `given` on top.

    Raises:
      UserError: it is none that clipjax knows, or has an argument that it does not.
    """
    found = DEFAULTS | _named(name)
    for key, value in (given or {}).items():
        if key in _IGNORED:
            continue
        if key not in found or key == "original":
            raise UserError(f"timm's {name!r} has {key} = {value!r}, which clipjax does not know.")
        found[key] = value
    for key in ("img_size", "ref_feat_shape"):
        if isinstance(found[key], list | tuple):
            if len(set(found[key])) != 1:
                raise UserError(f"timm's {name!r}: {key} is {found[key]}; clipjax's are square.")
            found[key] = int(found[key][0])
    return found


def _named(name: str) -> dict[str, Any]:
    base, _, _ = name.partition(".")  # what follows a dot names the weights
    if match := _VIT.fullmatch(base):
        size, kind = match["size"], match["kind"].removeprefix("_")
        if size in _SIZES:
            width, depth, heads, ratio = _SIZES[size]
            shape = dict(embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=ratio)
            px = int(match["px"] or (518 if kind.endswith("dinov2") else 224))
            how = _vit(base, kind, size)
            return dict(patch_size=int(match["patch"]), img_size=px) | shape | how
    if match := _EVA.fullmatch(base):
        size = match["size"]
        if size in _EVA_SIZES:
            width, depth, heads = _EVA_SIZES[size]
            how = dict(eva=True, embed_dim=width, depth=depth, num_heads=heads)
            how |= dict(patch_size=int(match["patch"]), img_size=int(match["px"]))
            if size == "enormous":
                return how | dict(mlp_ratio=15360 / 1792, use_post_norm=True)
            return how | dict(
                mlp_ratio=8 / 3,
                qkv_fused=False,
                swiglu_mlp=True,
                scale_mlp=True,
                scale_attn_inner=True,
                use_rot_pos_emb=True,
                ref_feat_shape=16,
            )
    if match := _EVA_GIANT.fullmatch(base):
        return dict(
            eva=True,
            patch_size=14,
            img_size=int(match["px"]),
            embed_dim=1408,
            depth=40,
            num_heads=16,
            mlp_ratio=6144 / 1408,
            global_pool="token" if match["clip"] else "avg",
        )
    raise UserError(f"timm's {name!r} is none of the architectures that clipjax reads: {NAMES}.")


def _vit(name: str, kind: str, size: str) -> dict[str, Any]:
    if kind.startswith("clip"):
        act = "quick_gelu" if kind.endswith("quickgelu") else "gelu"
        return dict(pre_norm=True, eps=1e-5, act_layer=act)
    if kind.startswith("siglip"):
        act = "gelu_tanh" if name.startswith(_TANH) else "gelu"
        how = dict(class_token=False, global_pool="map", act_layer=act)
        return how | (dict(global_pool="avg", fc_norm=False) if kind.endswith("gap") else {})
    if kind.endswith("dinov2"):
        how = dict(init_values=1e-5)
        if size == "giant":
            # timm's giant of DINOv2 is another one than its giant.
            how |= dict(embed_dim=1536, depth=40, num_heads=24, mlp_ratio=2.66667 * 2)
            how |= dict(mlp_layer="swiglu")
        return how | (dict(reg_tokens=4, no_embed_class=True) if "reg4" in kind else {})
    return {}


def mlp_width(args: Mapping[str, Any]) -> int:
    """Width of the hidden layer; of one half where two are packed in one matrix."""
    width = int(args["embed_dim"] * args["mlp_ratio"])
    return width // 2 if args["mlp_layer"] == "swiglu" else width


def image_tower(args: Mapping[str, Any]) -> ConfigDict:
    """The image tower of timm's arguments.

    Raises:
      UserError: a pooling or an option that clipjax's ViT does not have.
    """
    pools = {"token": "class", "avg": "average", "map": "map"}
    if args["global_pool"] not in pools:
        raise UserError(
            f"timm's global_pool {args['global_pool']!r} is not supported; {', '.join(pools)} are."
        )
    pooled = args["fc_norm"]
    if pooled is None:
        pooled = args["global_pool"] == "avg"
    swiglu = args["swiglu_mlp"] or args["mlp_layer"] == "swiglu"
    return image_section(
        size=args["img_size"],
        patch=args["patch_size"],
        width=args["embed_dim"],
        depth=args["depth"],
        heads=args["num_heads"],
        mlp_ratio=mlp_width(args) / args["embed_dim"],
        pool=pools[args["global_pool"]],
        class_token=bool(args["class_token"]),
        class_position=not args["no_embed_class"],
        registers=args["reg_tokens"],
        pre_norm=bool(args["pre_norm"]),
        patch_bias=not args["pre_norm"],
        final_norm="pooled" if pooled else "tokens",
        activation=args["act_layer"],
        eps=args["eps"],
        layer_scale=args["init_values"],
        qkv_bias=bool(args["qkv_bias"]),
        key_bias=not args["eva"],
        qk_norm=bool(args["qk_norm"]),
        mlp="swiglu" if swiglu else "mlp",
        mlp_norm=bool(args["scale_mlp"]),
        attention_norm=bool(args["scale_attn_inner"]),
        norm_order="post" if args["use_post_norm"] else "pre",
        rope="eva" if args["use_rot_pos_emb"] else None,
        rope_grid=args["ref_feat_shape"],
    )


def find(image: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The name of the timm model that comes nearest to an image tower, and in what it differs."""
    wanted = {"image": image}
    towers = {name: image_tower(arguments(name)) for name in timm_names.NAMES}
    wrong = {name: differences(wanted, {"image": tower}) for name, tower in towers.items()}
    nearest = min(wrong, key=lambda name: len(wrong[name]))
    return nearest, wrong[nearest]
