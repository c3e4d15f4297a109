"""CLOC in minutes on two CPU cores: composed scenes of the bundled drawings, evaluated on a style never trained on.

`experiments/cloc/configs/scenes.py:ARM` is one arm of the comparison in experiments/cloc/README.md:

  cloc           the paper's objective: image-text, region-text, grounding
  roi_align      its baseline: RoI-Align in place of the Prompter, so no grounding
  clip           the image-text loss alone
  no_filter, no_grounding, no_positions, m1, m2      cloc with one thing changed

The paper's other arm, from a trained CLIP: `cloc` with --config.init="{'': 'runs/clip', 'regions': 'fresh'}".
"""

from clipjax.defaults import base_config
from clipjax.models import image_section, model_section, region_section, text_section

SCENES = {
    "kind": "scenes",
    "size": 40,
    "objects": (2, 3),
    "scale": (0.45, 0.65),
    "max_occlusion": 0.3,
    "names_only": True,
    "categories": ("Activities",),  # 64 names: what can be learnt in minutes
}
ARMS = ("cloc", "roi_align", "clip", "no_filter", "no_grounding", "no_positions", "m1", "m2")


def held_out(length=500):
    """Scenes with a style, photographs and layouts that training does not see."""
    held = {"styles": ("fluent_3d",), "backgrounds": "test_photos"}
    return SCENES | {"length": length, "seed": 1} | held


def get_config(arg="cloc"):
    if arg not in ARMS:
        raise ValueError(f"there is no arm {arg!r}; there are {', '.join(ARMS)}")
    config = base_config()
    config.batch_size = 64  # many steps matter more than many negatives here
    config.total_samples = 60_000
    image = image_section(
        size=40,
        patch=8,
        width=128,
        depth=3,
        heads=2,
        stem="conv",
        pool="average",
        pre_norm=False,
        unroll=0,
    )
    text = text_section(length=16, width=96, depth=2, heads=2, unroll=0)
    if arg == "roi_align":
        head = region_section("roi_align")
    else:
        coded = arg != "no_positions"
        head = region_section("prompter", mlp_ratio=2.0, token_positions=coded, remat="none")
    if arg == "clip":
        config.model = model_section(image, text, embed_dim=128)
    else:
        config.model = model_section(
            image, text, kind="region_dual_encoder", regions=head, embed_dim=128
        )
    config.preprocess.resize = "squash"
    backgrounds = ("plain", "gradient", "photos")
    config.data.sources = {"scenes": SCENES | {"length": 20_000, "backgrounds": backgrounds}}
    # Nothing is cropped: a caption names all that is there.
    config.data.features.image.augment.update(
        crop="fit", brightness=0.3, contrast=0.3, saturation=0.4, hue=0.05, grayscale=0.05
    )
    if arg != "clip":
        count = {"m1": 1, "m2": 2}.get(arg, 4)
        config.data.features.regions = {"kind": "regions", "count": count, "text_length": 10}
        threshold = 2.0 if arg == "no_filter" else 0.9
        config.losses.regions = {"kind": "region_softmax", "conflict_threshold": threshold}
    if arg not in ("clip", "roi_align", "no_grounding"):
        config.losses.grounding = {"kind": "grounding", "weight": 1.0}
    config.optim.update(name="muon", lr=2e-3, warmup="5%", weight_decay=0.3, ema=0.998)
    config.optim.lr_multipliers = (("text/token_embedding", 10.0), (".*", 1.0))
    config.checkpoint.every = "50%"
    config.evals = evaluators(arg)
    return config


def evaluators(arg):
    """Regions by the model's own head, or for a CLIP by RoI-Align and by cropping; whole images for all."""
    evals = {
        "images": {"kind": "retrieval", "source": held_out()},
        "hard_negatives": {"kind": "hard_negatives", "source": held_out()},
    }
    for how in ("roi_align", "crop") if arg == "clip" else ("model",):
        at = "" if how == "model" else f"_{how}"
        evals[f"classes{at}"] = {"kind": "region_classification", "source": held_out(), "how": how}
        evals[f"regions{at}"] = {"kind": "region_retrieval", "source": held_out(), "how": how}
    if arg not in ("clip", "roi_align", "no_grounding"):
        evals["boxes"] = {"kind": "grounding", "source": held_out()}
    return {name: {"every": None} | entry for name, entry in evals.items()}
