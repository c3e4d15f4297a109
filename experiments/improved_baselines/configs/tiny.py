"""The smallest run that has everything, for tests; `tiny.py:ARM` is an arm of it."""

from clipjax.models import image_section, text_section
from configs import quickstart
from experiments.improved_baselines.arms import add, parse
from experiments.improved_baselines.configs.small import STRONG

WIDTHS = {"local": (16, 16), "barlow": (16, 24), "siamese": (16, 8), "prototype": (16, 8)}
WIDTHS |= {"prototypes": 12}


def get_config(arg=None):
    base, extras = parse(arg) if arg else ("rocket", ("barlip", "byolip", "swalip"))
    config = quickstart.get_config()
    config.batch_size = 16
    config.total_samples = "4 steps"
    image = image_section(size=16, patch=8, width=16, depth=1, heads=2, pool="average")
    text = text_section(length=8, width=16, depth=1, heads=2, dropout=0.2)
    config.model.update(image=image, text=text, embed_dim=16)
    config.optim.update(name="adamw", lr=0.01, warmup=0, ema=0.9)
    config.checkpoint.update(every="1 steps", keep=None)
    config.log.tensorboard = False
    del config.evals["category"]
    return add(config, base, extras, STRONG, widths=WIDTHS, frozen_steps=2)
