"""The smallest run that has everything: an average, a bias, two evaluators."""

from clipjax.defaults import base_config
from clipjax.models import image_section, model_section, text_section


def get_config(arg=None):
    config = base_config()
    config.batch_size = 8
    config.total_samples = "4 steps"
    image = image_section(size=16, patch=8, width=16, depth=1, heads=2, pool="average")
    text = text_section(length=8, width=16, depth=1, heads=2)
    config.model = model_section(image, text, embed_dim=8, init_bias=-1.0)
    config.preprocess.resize = "squash"
    config.data.sources = {"noise": {"kind": "synthetic", "size": 16, "length": 24}}
    config.losses = {"pairs": {"kind": "sigmoid"}}
    config.optim.update(lr=0.02, warmup=0, ema=0.9)
    config.checkpoint.update(every="2 steps", keep=None)
    config.log.tensorboard = False
    config.evals = {
        "numbers": {
            "kind": "retrieval",
            "source": {"kind": "synthetic", "size": 16, "length": 12},
        },
        "category": {
            "kind": "zero_shot",
            "source": {"kind": "drawings", "split": "unseen", "styles": ("fluent_3d",)},
            "label_field": "category",
        },
    }
    return config
