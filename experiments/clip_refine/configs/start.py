"""The encoder that all arms start from: the quickstart's, with the scale fixed at 100, which leaves a wide gap."""

from pathlib import Path

from clipjax.config import import_file

quickstart = import_file(Path(__file__).parents[3] / "configs" / "quickstart.py")


def get_config(arg=None):
    config = quickstart.get_config()
    config.model.init_scale = 100.0
    config.optim.freeze = (("logit_scale", True), (".*", False))
    return config
