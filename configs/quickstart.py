"""A real CLIP from nothing in a few minutes on two CPU cores: drawings in five styles and their names.

Evaluated on a sixth style that is never trained on, for concepts that were (seen) and were not (unseen) trained on.
"""

from clipjax.defaults import base_config
from clipjax.models import image_section, model_section, text_section


def held_out(split):
    return {"kind": "drawings", "split": split, "styles": ("fluent_3d",)}


def get_config(arg=None):
    config = base_config()
    config.batch_size = 224
    config.total_samples = 140_000
    image = image_section(
        size=32,
        patch=8,
        width=192,
        depth=4,
        heads=3,
        stem="conv",
        pool="average",
        pre_norm=False,
        unroll=0,
    )
    text = text_section(length=16, width=128, depth=2, heads=2, attention="full", unroll=0)
    config.model = model_section(image, text, embed_dim=128)
    config.preprocess.resize = "squash"
    config.data.sources = {"drawings": {"kind": "drawings", "group": "concept"}}
    config.data.features.text.captions = {
        "kind": "name_and_keywords",
        "templates": ("{}", "{}", "a drawing of {}"),
        "name": 0.4,
        "keywords": 0.2,
    }
    # Mild, because every sample counts: random backgrounds cost more than they give in minutes.
    config.data.features.image.augment.update(
        crop_scale=(0.6, 1.0),
        flip=0.5,
        rotate=8.0,
        brightness=0.3,
        contrast=0.3,
        saturation=0.4,
        hue=0.05,
    )
    # Muon leaves the plateau at chance at once, where AdamW needs a tenth of the run. A word is in few batches, so its
    # embedding takes larger steps.
    config.optim.update(name="muon", lr=2e-3, warmup="5%", weight_decay=0.3, ema=0.998)
    config.optim.lr_multipliers = (("text/token_embedding", 10.0), (".*", 1.0))
    config.checkpoint.every = "50%"
    names = {"kind": "retrieval", "text_fields": ("name",), "every": "25%"}
    config.evals = {
        "seen": {"source": held_out("seen"), **names},
        "unseen": {"source": held_out("unseen"), **names},
        "category": {
            "kind": "zero_shot",
            "source": held_out("all"),
            "label_field": "category",
            "templates": "drawings",
        },
    }
    return config
