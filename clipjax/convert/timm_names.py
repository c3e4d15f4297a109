"""The vision transformers of timm 1.0.31 that clipjax reads, by name: what open_clip can name as an image tower.

open_clip builds such a tower from the name alone, so its image size is the name's, too.
"""

_SIZES = {
    "vit_base_patch14": ("dinov2", "reg4_dinov2"),
    "vit_base_patch16": (
        *(224, 384),
        *("clip_224", "clip_384", "clip_quickgelu_224"),
        *(f"siglip{gap}_{px}" for gap in ("", "_gap") for px in (224, 256, 384, 512)),
    ),
    "vit_base_patch32": (
        *(224, 384),
        *("clip_224", "clip_256", "clip_384", "clip_448", "clip_quickgelu_224"),
        *("siglip_256", "siglip_gap_256"),
    ),
    "vit_base_patch8": (224,),
    "vit_giant_patch14": (224, "clip_224", "dinov2", "reg4_dinov2"),
    "vit_giantopt_patch16": tuple(f"siglip{gap}_{px}" for gap in ("", "_gap") for px in (256, 384)),
    "vit_gigantic_patch14": (224, "clip_224", "clip_378", "clip_quickgelu_224"),
    "vit_huge_patch14": (
        224,
        *("clip_224", "clip_336", "clip_378", "clip_quickgelu_224", "clip_quickgelu_378"),
    ),
    "vit_large_patch14": (
        224,
        *("clip_224", "clip_336", "clip_quickgelu_224", "clip_quickgelu_336"),
        *("dinov2", "reg4_dinov2"),
    ),
    "vit_large_patch16": (
        *(224, 384),
        *(f"siglip{gap}_{px}" for gap in ("", "_gap") for px in (256, 384, 512)),
    ),
    "vit_large_patch32": (224, 384),
    "vit_medium_patch16": ("clip_224",),
    "vit_medium_patch32": ("clip_224",),
    "vit_small_patch14": ("dinov2", "reg4_dinov2"),
    "vit_small_patch16": (224, 384),
    "vit_small_patch32": (224, 384),
    "vit_small_patch8": (224,),
    "vit_so400m_patch14": (
        *("siglip_224", "siglip_378", "siglip_384"),
        *(f"siglip_gap_{px}" for px in (224, 378, 384, 448, 896)),
    ),
    "vit_so400m_patch16": tuple(
        f"siglip{gap}_{px}" for gap in ("", "_gap") for px in (256, 384, 512)
    ),
    "vit_tiny_patch16": (224, 384),
    "eva02_base_patch16": ("clip_224",),
    "eva02_enormous_patch14": ("clip_224",),
    "eva02_large_patch14": ("clip_224", "clip_336"),
    "eva_giant_patch14": (224, 336, 560, "clip_224"),
}
NAMES = tuple(f"{size}_{kind}" for size, kinds in _SIZES.items() for kind in kinds)
