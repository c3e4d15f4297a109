"""Every run of this folder's README, and its tables.

  clipjax recipe --recipe=experiments/cloc/recipe.py --workdir=runs/cloc --jobs=2
  clipjax recipe --recipe=experiments/cloc/recipe.py:6000 --workdir=runs/cloc_short

Scenes are composed once and read from files. Runs of one budget get the same FLOPs, as counted from their train steps:
those whose step is cheaper see more samples. The arms and three seeds have the whole budget, `half-` (ablations) half
of it, `long-` twice. The argument is the budget, in samples of the arm `cloc`.
"""

from clipjax.recipe import Column, call, folder, rows, table, train

SEEDS = (0, 1, 2)
ARMS = ("cloc", "roi_align", "clip")
ABLATIONS = ("cloc", "no_filter", "no_grounding", "no_positions", "m1", "m2")
# Samples for the FLOPs of one of `cloc` (clipjax show prints an arm's); tests/experiments/cloc counts them again.
SAMPLES = {
    "cloc": 1.0,
    "roi_align": 1.28303,
    "clip": 1.73857,
    "no_filter": 1.0019,
    "no_grounding": 1.09666,
    "no_positions": 1.0,
    "m1": 1.40912,
    "m2": 1.24111,
}


def either(evaluator, metric):
    """Of an arm with a region head, or of a CLIP, whose tokens are pooled."""
    return Column((f"{evaluator}/{metric}", f"{evaluator}_roi_align/{metric}"))


COLUMNS = {
    "mAcc": either("classes", "mAcc"),
    "mAcc, boxes cut out": Column("classes_crop/mAcc"),
    "region to text R@10": either("regions", "region_to_text/R@10"),
    "text to region R@10": either("regions", "text_to_region/R@10"),
    "grounding IoU": Column("boxes/iou"),
    "hard negatives": Column("hard_negatives/accuracy"),
    "image to text R@5": Column("images/image_to_text/R@5"),
    "text to image R@5": Column("images/text_to_image/R@5"),
}


def get_recipe(arg="60000"):
    budget = int(arg)
    source = {"scenes": {"kind": "array_record", "files": f"{folder('scenes')}/*.array_record"}}

    def run(name, arm, seed, share, init=None):
        overrides = {
            "seed": seed,
            "total_samples": round(budget * share * SAMPLES[arm]),
            "data.sources": source,
            "data.threads": 1,
        }
        overrides |= {} if init is None else {"init": init}
        return train(name, f"configs/scenes.py:{arm}", overrides)

    tuned = {"": folder("clip-0"), "regions": "fresh"}
    half = [f"half-{arm}" for arm in ABLATIONS] + ["half-tuned-cloc", "half-tuned-roi_align"]
    main = ("mAcc", "region to text R@10", "text to region R@10", "hard negatives")
    return [
        call("scenes", "experiments.cloc.scenes_on_disk:write", count=20_000),
        *(run(f"{arm}-{seed}", arm, seed, 1) for seed in SEEDS for arm in ARMS),
        *(run(f"half-{arm}", arm, 0, 0.5) for arm in ABLATIONS),
        *(run(f"long-{arm}", arm, 0, 2) for arm in ARMS),
        *(run(f"half-tuned-{arm}", arm, 0, 0.5, tuned) for arm in ("cloc", "roi_align")),
        table(
            "results",
            rows(ARMS, SEEDS),
            COLUMNS,
            baseline="clip",
            compare=[("cloc", other, c) for other in ("clip", "roi_align") for c in main],
        ),
        table("longer", {arm: f"long-{arm}" for arm in ARMS}, COLUMNS),
        table("ablations", {name: name for name in half}, COLUMNS),
    ]
