"""The quickstart grown up: 48 px, a deeper image tower, more samples; under an hour on two cores."""

from pathlib import Path

from clipjax.config import import_file
from clipjax.models import image_section, model_section, text_section

quickstart = import_file(Path(__file__).with_name("quickstart.py"))


def get_config(arg=None):
    config = quickstart.get_config()
    config.total_samples = 400_000
    image = image_section(
        size=48,
        patch=8,
        width=192,
        depth=5,
        heads=3,
        stem="conv",
        patch_dropout=0.25,
        pool="average",
        pre_norm=False,
        unroll=0,
    )
    text = text_section(length=16, width=128, depth=3, heads=2, attention="full", unroll=0)
    config.model = model_section(image, text, embed_dim=192)
    config.data.features.image.augment.update(
        crop_scale=(0.5, 1.0), rotate=10.0, saturation=0.5, hue=0.08, grayscale=0.05
    )
    config.optim.warmup = "2%"
    config.checkpoint.every = "10%"
    return config
