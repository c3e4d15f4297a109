"""A named CLIP or SigLIP from nothing, with the recipe of its family: `--config=configs/clip.py:ViT-B-16`.

The variants are those of clipjax/models/variants.py. The data is noise, for dry runs and speed tests; replace it by
your own, a file of captions beside a folder of images (see docs/data.md), here or with
`--config.data.sources.pairs.kind=captions --config.data.sources.pairs.file=captions.jsonl`.
Large towers need less memory with `--config.model.image.remat=full`.
"""

from clipjax.defaults import base_config
from clipjax.models.variants import model_config


def get_config(arg="ViT-B-16"):
    config = base_config()
    config.model = model_config(arg)
    config.batch_size = 32_768
    config.total_samples = 12_800_000_000
    config.data.sources = {"pairs": {"kind": "synthetic"}}
    # torchvision's RandomResizedCrop(scale=(0.9, 1.0)), the only augmentation of open_clip's recipes.
    config.data.features.image.augment.update(
        crop_scale=(0.9, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.0
    )
    config.checkpoint.update(every=256_000_000, keep=2)
    if "SigLIP" in arg:
        return siglip(config)
    # Radford et al. 2021, table 18, and open_clip's defaults.
    config.optim.update(
        lr=5e-4,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        schedule="cosine",
        warmup="10000 steps",
    )
    return config


def siglip(config):
    """Zhai et al. 2023, sections 3 and 4; the tower's own table holds the initial scale 10 and bias -10."""
    config.losses = {"contrastive": {"kind": "sigmoid", "weight": 1.0}}
    config.preprocess.resize = "squash"
    # No vocabulary is bundled: bring C4's sentencepiece model (for SigLIP 2 Gemma's, see docs/tokenizers.md).
    config.tokenizer = {"kind": "sentencepiece", "source": "sentencepiece.model"}
    config.optim.update(
        lr=1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-4, schedule="cosine", clip_norm=1.0
    )
    config.optim.warmup = "20000 steps"
    config.optim.clip_values = ()  # the published scales lie above OpenAI's bound of 100
    return config
