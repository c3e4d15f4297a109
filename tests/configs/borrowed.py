"""A tiny CLIP that transformers can express, from nothing or from the checkpoint at `arg`."""

from clipjax.convert.source import open_source
from clipjax.defaults import base_config
from clipjax.models import image_section, model_section, text_section


def get_config(arg=None):
    config = base_config()
    config.batch_size = 8
    config.total_samples = "2 steps"
    image = image_section(size=16, patch=8, width=16, depth=1, heads=2)
    text = text_section(length=8, width=16, depth=1, heads=2)
    config.model = model_section(image, text, embed_dim=8)
    config.data.sources = {"noise": {"kind": "synthetic", "size": 16, "length": 24}}
    config.optim.update(lr=0.02, warmup=0)
    config.log.tensorboard = False
    if arg is not None:
        source = open_source(arg)
        for section in ("model", "preprocess", "tokenizer"):
            config[section] = source.config[section]
        config.init = {"": arg}
        config.optim.lr = 0.0
    return config
