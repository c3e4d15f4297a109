"""CLIP-Refine in a minute on two CPU cores: an encoder of drawings sees captions of composed scenes, each once.

`experiments/clip_refine/configs/small.py:ARM` is one of arms.py. The start is a run of configs/start.py.
"""

from pathlib import Path

from clipjax.config import import_file
from clipjax.defaults import base_config
from clipjax.models import model_section
from experiments.clip_refine.arms import FREEZE, TEACHER, losses

# Of the raw products in HyCD: a start's features have norms of 15.0 and 16.3, so that this is the scale of 100 again.
SCALE = 0.4

start = import_file(Path(__file__).with_name("start.py"))
scenes = import_file(Path(__file__).parents[2] / "cloc" / "configs" / "scenes.py")


def get_config(arg="full"):
    config = base_config()
    config.batch_size = 64
    config.total_samples = 312 * 64  # one pass without its last batch
    drawings = start.get_config()
    drawings.model.dtype = "float32"  # raw products of order 100 are differences in the softmax
    ours = {"kind": "experiments.clip_refine.model:TaughtDualEncoder", "teacher": drawings.model}
    config.model = model_section(**drawings.model.to_dict() | ours)
    config.init = {"": "runs/clip_refine/start-0", **TEACHER}
    config.losses = losses(arg, SCALE)
    config.preprocess.resize = "squash"
    config.data.sources = scenes.get_config("clip").data.sources
    config.data.features.image.augment.crop = "fit"
    config.optim.update(lr=1e-4, schedule="constant", warmup=0, b2=0.999, eps=1e-8, freeze=FREEZE)
    config.optim.update(weight_decay=0.1, decay_rules=((".*", 1.0),))
    config.checkpoint.every = "100%"
    seen_scenes = scenes.get_config("clip").data.sources.scenes.to_dict() | {"length": 512}
    held_out = {"source": scenes.held_out(), "every": None}
    geometry = {"kind": "experiments.clip_refine.evals:Geometry", **held_out}
    config.evals = {
        "scenes": {"kind": "retrieval", **held_out},
        "geometry": geometry,
        "norms": {
            "kind": "experiments.clip_refine.evals:Norms",
            "source": seen_scenes,
            "every": None,
        },
        "geometry_drawings": geometry
        | {"source": drawings.evals.seen.source, "text_field": "name"},
        "seen": drawings.evals.seen.to_dict() | {"every": None},
        "category": drawings.evals.category,
    }
    return config
