"""MaPLe in a minute on two CPU cores: an encoder of drawings learns 92 new concepts from at most five drawings each.

`experiments/maple/configs/small.py:ARM` is an arm of prompts.py. The start is what the stage `add_prompts` makes of a
run of configs/quickstart.py (the recipe does it). Base and novel classes alternate among the concepts that the start
has not seen; the test is on a style that nothing was trained on.
"""

from pathlib import Path

from clipjax.config import import_file
from clipjax.data.drawings import TEST_STYLE, Drawings
from clipjax.defaults import base_config
from clipjax.models import model_section
from experiments.maple.prompts import ARMS

quickstart = import_file(Path(__file__).parents[3] / "configs" / "quickstart.py")
paper = import_file(Path(__file__).with_name("paper.py"))
TEMPLATE, WORDS = "a drawing of {}", "a drawing"
UNSEEN = tuple(record["name"] for record in Drawings("unseen", group="concept"))
HALVES = {"base": UNSEEN[::2], "novel": UNSEEN[1::2]}
DEPTH = 2  # the text tower has two layers
EPOCHS = 20  # of all 846 drawings, of which the filter lets half pass
RATE = 0.07  # chosen by the training loss, see the README


def drawings(half, **settings):
    """The drawings of a half of the unseen concepts."""
    return {
        "kind": "drawings",
        "split": "unseen",
        "filter": {"values": {"name": HALVES[half]}},
    } | settings


def get_config(arg="coupled"):
    if arg not in ARMS:
        raise ValueError(f"there is no arm {arg!r}; there are {', '.join(ARMS)}")
    config = base_config()
    start = quickstart.get_config()
    config.batch_size = 16
    config.total_samples = f"{EPOCHS} epochs"
    ours = {"kind": "experiments.maple.model:PromptedDualEncoder", "arm": arg}
    ours |= {"prompt_depth": DEPTH, "classes": HALVES["base"], "template": TEMPLATE}
    config.model = model_section(**start.model.to_dict() | ours)
    config.init = {"": f"runs/maple/prompted-{arg}-0"}
    config.losses = {"classes": {"kind": "class_cross_entropy"}}
    config.preprocess.resize = "squash"
    config.data.sources = {"few_shot": drawings("base")}
    config.data.features = {
        "image": start.data.features.image.to_dict(),
        "labels": {"kind": "labels", "column": "name", "classes": HALVES["base"]},
    }
    config.data.threads = 1
    config.optim.update(name="sgd", settings={"momentum": 0.9, "l2": 5e-4}, weight_decay=0.0)
    config.optim.update(lr=RATE, schedule="experiments.maple.schedules:cosine_by_epoch")
    config.optim.update(warmup="1 epochs", freeze=paper.FREEZE)
    config.checkpoint.every = "100%"
    config.log.tensorboard = False
    config.evals.generalisation = {
        "kind": "experiments.maple.evals:BaseToNovel",
        "sources": {half: drawings(half, styles=(TEST_STYLE,)) for half in HALVES},
        "classes": HALVES,
        "template": TEMPLATE,
        "label_field": "name",
    }
    return config
