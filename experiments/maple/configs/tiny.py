"""The smallest run that has everything of MaPLe, for tests: prompts on a fresh encoder."""

from pathlib import Path

from clipjax.config import import_file

small = import_file(Path(__file__).with_name("small.py"))


def get_config(arg="coupled"):
    config = small.get_config(arg)
    config.batch_size = 16
    config.total_samples = "4 steps"
    config.model.image.update(size=16, width=24, depth=2)
    config.model.text.update(width=16, depth=2)
    config.model.embed_dim = 16
    config.init = {}
    config.optim.update(lr=0.5, schedule="constant", warmup=0)
    config.checkpoint.update(every="2 steps", keep=None)
    return config
