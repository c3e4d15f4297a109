"""CLOC, ViT-H/14 at 336 px; the recipe is that of b16.py beside it."""

from pathlib import Path

from clipjax.config import import_file

b16 = import_file(Path(__file__).with_name("b16.py"))


def get_config(arg="ViT-H-14"):
    config = b16.get_config(arg)
    config.model.image.size = 336
    return config
