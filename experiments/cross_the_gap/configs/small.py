"""The quickstart's encoder at a fixed scale, and what inversion makes of it: `small.py:ARM`.

`scale_100` leaves a wide modality gap, `scale_1` a narrow one; `image_image` adds an intra-modal term to the first.
"""

from pathlib import Path

from clipjax.config import import_file

quickstart = import_file(Path(__file__).parents[3] / "configs" / "quickstart.py")
HERE = "experiments.cross_the_gap"
SCALES = {"scale_100": 100.0, "scale_1": 1.0, "image_image": 100.0}


def evaluators(steps=(0, 25, 50, 100, 150, 250, 500), count=128):
    """Of the style not trained on: images against those trained on, keywords against names, categories, the gap."""
    oti, ovi = {"template": "a drawing of {}", "steps": steps}, {"patches": 1, "steps": steps}
    shared = {"label_field": "concept", "count": count}
    texts = {"kind": f"{HERE}.sources:ConceptTexts", "keywords": False}
    held_out = quickstart.held_out("all")
    images = {"queries": held_out, "gallery": {"kind": "drawings", "split": "all"}}
    texts = {"queries": texts | {"keywords": True}, "gallery": texts}
    category = quickstart.get_config().evals.category.to_dict() | {"count": count}
    kind = f"{HERE}.evals:"
    return {
        "images": {"kind": f"{kind}ImageRetrieval", "sources": images, "inversion": oti, **shared},
        "texts": {"kind": f"{kind}TextRetrieval", "sources": texts, "inversion": ovi, **shared},
        "zero_shot": category | {"kind": f"{kind}ZeroShot", "oti": oti, "ovi": ovi},
        "gap": {"kind": f"{kind}Gap", "source": held_out, "text_field": "name"},
    }


def get_config(arg="scale_100"):
    if arg not in SCALES:
        raise ValueError(f"there is no arm {arg!r}; there are {', '.join(SCALES)}")
    config = quickstart.get_config()
    config.model.init_scale = SCALES[arg]
    config.optim.freeze = (("logit_scale", True), (".*", False))
    if arg == "image_image":
        config.model.kind = f"{HERE}.model:TwoViewEncoder"
        config.data.features.view = config.data.features.image.copy_and_resolve_references()
        config.losses.images = {"kind": "softmax", "text": "view_embedding", "scale": 10.0}
    config.evals = evaluators()
    return config
