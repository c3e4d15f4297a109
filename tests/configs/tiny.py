"""The smallest real run: bundled drawings at 16 px, one layer a tower, a tokenizer of letters.

Everything that a resumed run must get right is switched on: random views, dropped patches, an average of the
parameters, texts that are cut, an evaluator in the middle, a checkpoint every few steps, a log line every step.
"""

from pathlib import Path

from clipjax.defaults import base_config
from clipjax.models import image_section, model_section, text_section


def get_config(arg=None):
    config = base_config()
    config.batch_size = 8
    config.total_samples = "20 steps" if arg is None else f"{arg} steps"
    image = image_section(size=16, patch=8, width=16, depth=1, heads=2, patch_dropout=0.25)
    text = text_section(length=8, vocab_size=48, width=16, depth=1, heads=2, end_token=3)
    config.model = model_section(image, text, embed_dim=16)
    config.tokenizer = {"kind": "hf_json", "source": str(Path(__file__).with_name("letters.json"))}
    styles = ("noto", "twemoji")
    config.data.sources = {"drawings": {"kind": "drawings", "group": "concept", "styles": styles}}
    config.data.features.text.captions = {"kind": "name_and_keywords"}
    config.data.features.image.augment.update(
        crop_scale=(0.6, 1.0), flip=0.5, saturation=0.3, background="random"
    )
    config.data.record_ids = True
    config.optim.update(lr=3e-3, warmup="2 steps", ema=0.9)
    config.checkpoint.every = "4 steps"
    config.log.update(every="1 steps", tensorboard=False)
    held_out = {"kind": "drawings", "split": "unseen", "styles": ("fluent_3d",)}
    config.evals = {"unseen": {"kind": "retrieval", "source": held_out, "every": "50%"}}
    return config
