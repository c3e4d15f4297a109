"""CLIP-Refine on COCO Captions: Yamaguchi et al., CVPR 2025 (arXiv 2504.12717), and the released code's configs.

`experiments/clip_refine/configs/paper.py:ARM` is another arm (arms.py). It wants OpenAI's ViT-B-32.pt and a file of
captions beside the images (docs/data.md): 99 % of train2017, a line an image with all its captions.
"""

from clipjax.defaults import base_config
from clipjax.models import model_section
from clipjax.models.variants import model_config
from experiments.clip_refine.arms import FREEZE, TEACHER, losses

IMAGES = 117_104


def get_config(arg="full"):
    config = base_config()
    config.batch_size = 512
    config.total_samples = IMAGES // 512 * 512  # one epoch without its last batch
    clip = model_config("ViT-B-32-quickgelu")
    clip.dtype = "float32"
    ours = {"kind": "experiments.clip_refine.model:TaughtDualEncoder", "teacher": clip}
    config.model = model_section(**clip.to_dict() | ours)
    config.init = {"": "ViT-B-32.pt", **TEACHER}
    config.losses = losses(arg)
    config.data.sources = {"coco": {"kind": "captions", "file": "coco/train2017.jsonl"}}
    config.data.features.image.augment.crop = "fit"
    config.optim.update(lr=1e-6, schedule="constant", warmup=0, b2=0.999, eps=1e-8)
    config.optim.update(weight_decay=0.1, decay_rules=((".*", 1.0),), freeze=FREEZE)
    config.checkpoint.every = "100%"
    val = {"source": {"kind": "captions", "file": "coco/val2017.jsonl"}}
    config.evals = {
        "coco": {"kind": "retrieval", "merge_duplicates": False, **val},
        "geometry": {"kind": "experiments.clip_refine.evals:Geometry", **val},
    }
    return config
