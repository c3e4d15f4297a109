"""The smallest run that has all of CLOC: three losses, boxes and their texts. For tests; nothing is learnt."""

from pathlib import Path

from clipjax.config import import_file

scenes = import_file(Path(__file__).with_name("scenes.py"))


def get_config(arg=None):
    config = scenes.get_config("cloc")
    config.batch_size, config.total_samples = 16, "3 steps"
    config.model.image.update(size=16, patch=8, width=16, depth=1)
    config.model.text.update(width=16, depth=1)
    config.model.embed_dim = 16
    config.data.sources.scenes.update(length=48, backgrounds=("plain",), size=32)
    config.optim.ema = 0.9
    config.log.tensorboard = False
    source = scenes.SCENES | {"length": 12, "seed": 1, "size": 32, "backgrounds": "plain"}
    config.evals = {"images": {"kind": "retrieval", "source": source}}
    return config
