"""The CLIPs that the field knows by name, as one table of ViTs and one of ResNets.

Names and numbers follow open_clip's model configs and big_vision's SigLIP configs. `model_config("ViT-B-16")` is the
`model` section of a config; `-quickgelu` after a CLIP's name selects OpenAI's activation (the weights of OpenAI,
MetaCLIP and DFN need it).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from clipjax.errors import UserError
from clipjax.models import image_section, model_section, text_section
from clipjax.registry import nearest


class Tower(NamedTuple):
    """Width, depth, heads and MLP width of a transformer."""

    width: int
    depth: int
    heads: int
    mlp_dim: int


class Variant(NamedTuple):
    """One named model. `vocab_size` and `length` tell its tokenizer's."""

    family: str
    size: int
    patch: int
    image: Tower
    text: Tower
    embed_dim: int
    length: int = 77
    vocab_size: int = 49408


B = Tower(768, 12, 12, 3072)
B_PLUS = Tower(896, 12, 14, 3584)
L = Tower(1024, 24, 16, 4096)
H = Tower(1280, 32, 16, 5120)
G_SMALL = Tower(1408, 40, 16, 6144)
G_BIG = Tower(1664, 48, 16, 8192)
SO = Tower(1152, 27, 16, 4304)
G_OPT = Tower(1536, 40, 16, 6144)

TEXT_512 = Tower(512, 12, 8, 2048)
TEXT_640 = Tower(640, 12, 10, 2560)
TEXT_768 = Tower(768, 12, 12, 3072)
TEXT_1024 = Tower(1024, 24, 16, 4096)
TEXT_1280 = Tower(1280, 32, 20, 5120)

C4, GEMMA = 32_000, 256_000


def _siglip(size: int, patch: int, tower: Tower, length: int = 64) -> Variant:
    return Variant("siglip", size, patch, tower, tower, tower.width, length, C4)


def _siglip2(size: int, patch: int, tower: Tower, text: Tower | None = None) -> Variant:
    return Variant("siglip", size, patch, tower, text or tower, tower.width, 64, GEMMA)


VARIANTS: dict[str, Variant] = {
    "ViT-B-32": Variant("clip", 224, 32, B, TEXT_512, 512),
    "ViT-B-32-256": Variant("clip", 256, 32, B, TEXT_512, 512),
    "ViT-B-16": Variant("clip", 224, 16, B, TEXT_512, 512),
    "ViT-B-16-plus-240": Variant("clip", 240, 16, B_PLUS, TEXT_640, 640),
    "ViT-L-14": Variant("clip", 224, 14, L, TEXT_768, 768),
    "ViT-L-14-336": Variant("clip", 336, 14, L, TEXT_768, 768),
    "ViT-H-14": Variant("clip", 224, 14, H, TEXT_1024, 1024),
    "ViT-H-14-378": Variant("clip", 378, 14, H, TEXT_1024, 1024),
    "ViT-g-14": Variant("clip", 224, 14, G_SMALL, TEXT_1024, 1024),
    "ViT-bigG-14": Variant("clip", 224, 14, G_BIG, TEXT_1280, 1280),
    "ViT-B-16-SigLIP": _siglip(224, 16, B),
    "ViT-B-16-SigLIP-256": _siglip(256, 16, B),
    "ViT-B-16-SigLIP-384": _siglip(384, 16, B),
    "ViT-B-16-SigLIP-512": _siglip(512, 16, B),
    "ViT-L-16-SigLIP-256": _siglip(256, 16, L),
    "ViT-L-16-SigLIP-384": _siglip(384, 16, L),
    "ViT-SO400M-14-SigLIP": _siglip(224, 14, SO, length=16),
    "ViT-SO400M-14-SigLIP-384": _siglip(384, 14, SO),
    "ViT-B-32-SigLIP2-256": _siglip2(256, 32, B),
    "ViT-B-16-SigLIP2": _siglip2(224, 16, B),
    "ViT-B-16-SigLIP2-256": _siglip2(256, 16, B),
    "ViT-B-16-SigLIP2-384": _siglip2(384, 16, B),
    "ViT-B-16-SigLIP2-512": _siglip2(512, 16, B),
    "ViT-L-16-SigLIP2-256": _siglip2(256, 16, L),
    "ViT-L-16-SigLIP2-384": _siglip2(384, 16, L),
    "ViT-L-16-SigLIP2-512": _siglip2(512, 16, L),
    "ViT-SO400M-14-SigLIP2": _siglip2(224, 14, SO),
    "ViT-SO400M-14-SigLIP2-378": _siglip2(378, 14, SO),
    "ViT-SO400M-16-SigLIP2-256": _siglip2(256, 16, SO),
    "ViT-SO400M-16-SigLIP2-384": _siglip2(384, 16, SO),
    "ViT-SO400M-16-SigLIP2-512": _siglip2(512, 16, SO),
    "ViT-gopt-16-SigLIP2-256": _siglip2(256, 16, G_OPT, SO),
    "ViT-gopt-16-SigLIP2-384": _siglip2(384, 16, G_OPT, SO),
}


class ResNetVariant(NamedTuple):
    """One of OpenAI's ResNets; their text towers have 12 layers and heads of 64."""

    size: int
    layers: tuple[int, int, int, int]
    width: int
    text_width: int
    embed_dim: int


RESNETS = {
    "RN50": ResNetVariant(224, (3, 4, 6, 3), 64, 512, 1024),
    "RN101": ResNetVariant(224, (3, 4, 23, 3), 64, 512, 512),
    "RN50x4": ResNetVariant(288, (4, 6, 10, 6), 80, 640, 640),
    "RN50x16": ResNetVariant(384, (6, 8, 18, 8), 96, 768, 768),
    "RN50x64": ResNetVariant(448, (3, 15, 36, 10), 128, 1024, 1024),
}

# What sets a family apart from the towers' defaults.
IMAGE = {
    "clip": dict(pool="class", pre_norm=True, patch_bias=False, eps=1e-5, activation="gelu"),
    "siglip": dict(pool="map", pre_norm=False, patch_bias=True, eps=1e-6, activation="gelu_tanh"),
}
TEXT = {
    "clip": dict(attention="causal", pool="eot", eps=1e-5, activation="gelu"),
    "siglip": dict(attention="full", pool="last", eps=1e-6, activation="gelu_tanh"),
}
CLIP_STATISTICS = dict(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
MODEL = {
    "clip": dict(init_scale=1 / 0.07, **CLIP_STATISTICS),
    "siglip": dict(
        init_scale=10.0, init_bias=-10.0, image_projection="none", text_projection="bias"
    ),
}


def model_config(name: str) -> ConfigDict:
    """The `model` section of the variant `name`.

    Raises:
      UserError: there is no such variant (with the nearest name).
    """
    base, quick = name.removesuffix("-quickgelu"), name.endswith("-quickgelu")
    if base in RESNETS:
        return _resnet_config(RESNETS[base], quick)
    if base not in VARIANTS or (quick and VARIANTS[base].family != "clip"):
        raise UserError(
            f"There is no model variant {name!r}{nearest(name, [*VARIANTS, *RESNETS])}."
        )
    v = VARIANTS[base]

    def tower(t: Tower) -> dict[str, float]:
        settings = dict(width=t.width, depth=t.depth, heads=t.heads, mlp_ratio=t.mlp_dim / t.width)
        return settings | (dict(activation="quick_gelu") if quick else {})

    image = image_section(size=v.size, patch=v.patch, **IMAGE[v.family] | tower(v.image))
    text = text_section(length=v.length, vocab_size=v.vocab_size, **TEXT[v.family] | tower(v.text))
    return model_section(image, text, embed_dim=v.embed_dim, **MODEL[v.family])


def _resnet_config(v: ResNetVariant, quick: bool) -> ConfigDict:
    image = image_section(
        "resnet", size=v.size, layers=v.layers, width=v.width, output_dim=v.embed_dim
    )
    text = text_section(
        width=v.text_width,
        heads=v.text_width // 64,
        **TEXT["clip"] | (dict(activation="quick_gelu") if quick else {}),
    )
    return model_section(
        image, text, embed_dim=v.embed_dim, image_projection="none", **MODEL["clip"]
    )
