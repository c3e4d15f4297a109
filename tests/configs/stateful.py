"""tiny.py with all kinds of state that has no gradient: a queue, a running mean, a momentum copy, a refresh."""

from pathlib import Path

from clipjax.config import import_file

tiny = import_file(Path(__file__).with_name("tiny.py"))


def get_config(arg=None):
    config = tiny.get_config(arg)
    config.model.kind = "tests.tiny_core:Remembering"
    config.losses.queue = {"kind": "tests.tiny_core:queue_loss"}
    config.losses.centred = {"kind": "tests.tiny_core:centred_loss", "weight": 3.0}
    frozen = ("queue", "centre", "slow_scale", "number")
    config.optim.freeze = (*((name, True) for name in frozen), (".*", False))
    config.optim.follow = (("slow_(.*)", r"logit_\1", 0.75),)
    config.refreshes = {"count": {"kind": "tests.tiny_core:counted", "every": "3 steps"}}
    config.evals = {}
    return config
