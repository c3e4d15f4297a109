"""The paper's recipes (repro_exps.txt of the released code): `paper.py:DATA,ARM,TOWER`.

For example `paper.py:yfcc15m,rocket_byolip,vit_b16`; what is left out is that of `yfcc15m,rocket,vit_s16`.
Captions of the web need synonyms of all words: see tools/make_synonyms.py.
"""

from clipjax.defaults import base_config
from clipjax.models import image_section, model_section, text_section
from experiments.improved_baselines.arms import add, parse

TOWERS = {"vit_s16": dict(width=384, heads=12), "vit_b16": dict(width=768, heads=12)}
# Of a set: depth and dropout of the text tower, weight decay, total of cl2l, settings of the texts, learning rate.
SETS = {
    "cc3m": (6, 0.2, 0.5, "average", {}, 3e-3),
    "cc12m": (12, 0.05, 0.1, "sum", {}, 3e-3),
    "yfcc15m": (12, 0.0, 0.1, "sum", {"clean": True}, 3e-3),
    "merged29m": (12, 0.0, 0.1, "sum", {"clean": True, "several": True}, 2e-3),
}
STRONG = dict(crop_scale=(0.08, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4)
STRONG |= dict(hue=0.1, grayscale=0.2, blur=0.5, blur_sigma=(0.1, 2.0), flip=0.5)


def get_config(arg="yfcc15m"):
    given = arg.split(",")
    data, arm, tower = given + ["yfcc15m", "rocket", "vit_s16"][len(given) :]
    depth, dropout, decay, total, texts, lr = SETS[data]
    config = base_config()
    config.batch_size = 4096
    config.total_samples = "32 epochs"
    image = image_section(
        size=224, patch=16, depth=12, pre_norm=False, patch_bias=True, eps=1e-6, **TOWERS[tower]
    )
    text = text_section(depth=depth, dropout=dropout, activation="quick_gelu")
    config.model = model_section(image, text, embed_dim=256)
    config.model.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config.data.sources = {data: {"kind": "parquet", "files": f"{data}/*.parquet"}}
    config.data.features.image.augment.update(crop_scale=(0.5, 1.0))
    config.optim.update(lr=lr, b1=0.9, b2=0.98, eps=1e-8, weight_decay=decay)
    config.optim.update(warmup="1 epochs", final_lr=1e-5 / lr)
    config.checkpoint.update(every="1 epochs", keep=2)
    add(config, *parse(arm), STRONG, {"synonyms": "synonyms_all.tsv", **texts}, total)
    if config.model.get("local") and set(config.model) & {"barlow", "siamese"}:
        config.model.separate = True  # as the runs of ViTs have it
        if "momentum" in config.model:
            config.model.momentum.separate = True
    return config
