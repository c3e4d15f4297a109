"""The smallest run that has everything of the experiment: what its tests train."""

from pathlib import Path

from clipjax.config import import_file

small = import_file(Path(__file__).with_name("small.py"))


def get_config(arg="image_image"):
    config = small.get_config(arg)
    config.batch_size, config.total_samples = 16, "3 steps"
    config.model.image.update(size=16, width=24, depth=1)
    config.model.text.update(width=16, depth=1)
    config.model.embed_dim = 16
    config.log.tensorboard = False
    config.evals = small.evaluators(steps=(0, 2), count=8)
    few = {"kind": "drawings", "split": "unseen", "styles": ("fluent_3d",)}
    config.evals.images.sources = {"queries": few, "gallery": few | {"styles": ("noto",)}}
    config.evals.gap.source = few
    return config
