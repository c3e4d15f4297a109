"""The smallest run that has everything of ALIP, for tests."""

from clipjax.models import image_section, text_section
from experiments.alip.configs import small

SCENES = dict(kind="scenes", size=32, objects=(1, 2), scale=(0.5, 0.7), backgrounds="plain")


def get_config(arg=None):
    config = small.get_config("all_30")
    config.batch_size = 16
    config.total_samples = "4 steps"
    image = image_section(size=16, patch=8, width=16, depth=1, heads=2, pool="average")
    text = text_section(length=12, width=16, depth=1, heads=2)
    config.model.update(image=image, text=text, embed_dim=16)
    scenes = SCENES | {"names_only": True, "length": 64}
    config.data.sources.scenes = small.source(scenes, 0.3)
    config.optim.update(name="adamw", lr=0.01, warmup=0, ema=0.9)
    for entry in config.evals.values():
        entry.source = small.source(scenes | {"length": 24, "seed": 1}, 0.3)
    config.checkpoint.update(every="2 steps", keep=None)
    config.log.tensorboard = False
    return config
