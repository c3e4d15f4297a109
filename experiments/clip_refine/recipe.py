"""All arms of this folder's README, and its table.

  clipjax recipe --recipe=experiments/clip_refine/recipe.py --workdir=runs/clip_refine --jobs=2

Scenes are composed once and read from files. Three seeds of the arms that are compared, one of the others; with the
argument `full` three of each.
"""

from clipjax.recipe import Column, arms, call, evaluate, folder, further_seeds, rows, table, train
from experiments.clip_refine.arms import TEACHER

MAIN, OTHERS, SEEDS = ("contrastive", "full", "direct"), ("self", "mixed"), (0, 1, 2)
COLUMNS = {
    "gap": Column("geometry/gap", lower_is_better=True),
    "alignment": Column("geometry/alignment", lower_is_better=True),
    "uniformity": Column("geometry/uniformity", lower_is_better=True),
    "category": "category/mean_per_class",
    "seen R@5": "seen/text_to_image/R@5",
    "scene R@5, to image": "scenes/text_to_image/R@5",
    "scene R@5, to text": "scenes/image_to_text/R@5",
    "gap, drawings": Column("geometry_drawings/gap", lower_is_better=True),
    "norm of images": "norms/image",
    "of texts": "norms/text",
}
COMPARE = [("full", "start", "gap"), ("direct", "full", "category")]
COMPARE += [("full", "contrastive", column) for column in list(COLUMNS)[3:7]]


def get_recipe(arg=None):
    few = further_seeds(arg)
    source = {"kind": "array_record", "files": f"{folder('scenes')}/*.array_record"}
    steps = [call("scenes", "experiments.cloc.scenes_on_disk:write", count=20_000)]
    for seed in SEEDS:
        start = folder(f"start-{seed}")
        overrides = {"init": {"": start, **TEACHER}, "data.sources.scenes": source}
        names = MAIN + OTHERS if seed in few else MAIN
        steps += [
            train(f"start-{seed}", "configs/start.py", {"seed": seed}),
            evaluate(f"before-{seed}", start, "configs/small.py"),
            *arms("configs/small.py", names, (seed,), overrides | {"data.threads": 1}),
        ]
    of_arms = {"start": [f"before-{seed}" for seed in SEEDS]}
    of_arms |= rows(MAIN, SEEDS) | rows(OTHERS, few)
    return [*steps, table("results", of_arms, COLUMNS, baseline="contrastive", compare=COMPARE)]
