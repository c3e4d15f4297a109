"""CLOC, ViT-L/14 at 336 px; the recipe is that of configs/cloc_b16.py."""

from pathlib import Path

from clipjax.config import import_file

cloc_b16 = import_file(Path(__file__).with_name("cloc_b16.py"))


def get_config(arg="ViT-L-14-336"):
    return cloc_b16.get_config(arg)
