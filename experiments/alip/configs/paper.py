"""ALIP on YFCC15M: Yang et al., ICCV 2023 (arXiv 2308.08428), section 4, and the script of the released code.

`experiments/alip/configs/paper.py:ViT-B-16` is the larger model. Records need the web's text and a synthetic caption
(OFA-base asked "What does the image describe?"): here a Parquet set whose columns are `caption` and `synthetic`.
"""

import optax

from clipjax.defaults import base_config
from clipjax.models.variants import model_config
from experiments.alip.model import FREEZE

PAIRS = 15_061_515  # DeCLIP's YFCC15M


def get_config(arg="ViT-B-32"):
    config = base_config()
    config.batch_size = 4096
    config.total_samples = 32 * PAIRS
    config.model = model_config(arg)
    config.model.kind = "experiments.alip.model:GatedDualEncoder"
    config.losses = {"gated": {"kind": "experiments.alip.losses:gated_contrastive"}}
    texts = {"kind": "experiments.alip.features:Fields", "fields": ("caption", "synthetic")}
    config.data.sources = {"yfcc15m": {"kind": "parquet", "files": "yfcc15m/*.parquet"}}
    config.data.features.text.captions = texts
    augment = dict(crop_scale=(0.7, 1.0), crop_ratio=(0.8, 1.25), flip=0.5)
    config.data.features.image.augment.update(augment)
    config.preprocess.interpolation = "bilinear"
    config.optim.update(lr=1e-3, b1=0.9, b2=0.98, eps=1e-8, clip_norm=1.0)
    config.optim.update(weight_decay=0.2, decay_rules=((".*", 1.0),))
    config.optim.update(schedule="experiments.alip.configs.paper:one_cycle", warmup="10%")
    config.optim.freeze = (FREEZE, (".*", False))
    config.checkpoint.update(every=PAIRS, keep=2)
    return config


def one_cycle(*, peak, total, warmup, batch_size, final):
    """PyTorch's OneCycleLR with its defaults: from peak / 25 to peak and down to peak / 250,000, by half cosines."""
    del final
    return optax.cosine_onecycle_schedule(total // batch_size, peak, pct_start=warmup / total)
