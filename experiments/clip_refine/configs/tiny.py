"""The smallest run that has everything of CLIP-Refine, for tests: its teacher is its own fresh start."""

from pathlib import Path

from clipjax.config import import_file
from clipjax.models import image_section, model_section, text_section
from experiments.clip_refine.arms import TEACHER

small = import_file(Path(__file__).with_name("small.py"))
SCENES = dict(kind="scenes", size=32, objects=(1, 2), scale=(0.5, 0.7), backgrounds="plain")


def get_config(arg="full"):
    config = small.get_config(arg)
    config.batch_size = 16
    config.total_samples = "4 steps"
    image = image_section(size=16, patch=8, width=16, depth=1, heads=2, pool="average")
    text = text_section(length=12, width=16, depth=1, heads=2)
    teacher = model_section(image, text, embed_dim=16, init_scale=100.0)
    config.model.update(image=image, text=text, embed_dim=16, teacher=teacher)
    config.init = TEACHER
    config.data.sources.scenes = SCENES | {"length": 64}
    config.optim.lr = 0.01
    for entry in config.evals.values():
        entry.source = {"kind": "drawings", "split": "unseen", "styles": ("fluent_3d",)}
    config.checkpoint.update(every="2 steps", keep=None)
    config.log.tensorboard = False
    return config
