"""In minutes on two CPU cores, on the bundled drawings: the quickstart's config and `small.py:ARM`, of arms.ARMS.

All arms see as many views of images: the recipe, with three of a sample, has a third of the samples.
"""

from configs import quickstart
from experiments.improved_baselines.arms import add, parse

VIEWS = 140_000
# The paper's strong view, with a crop and a blur for images of 32 pixels.
STRONG = dict(crop_scale=(0.25, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4)
STRONG |= dict(hue=0.1, grayscale=0.2, blur=0.5, blur_sigma=(0.1, 0.5), flip=0.5)
WIDTHS = {"local": (512, 512), "barlow": (512, 512, 1024), "siamese": (512, 64)}
WIDTHS |= {"prototype": (512, 64), "prototypes": 512}


def get_config(arg="rocket"):
    base, extras = parse(arg)
    config = quickstart.get_config()
    config.total_samples = VIEWS // 3 if base == "rocket" else VIEWS
    config.model.text.dropout = 0.05
    return add(config, base, extras, STRONG, widths=WIDTHS, frozen_steps=10)
