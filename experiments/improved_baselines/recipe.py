"""All arms of this folder's README, and its table.

  clipjax recipe --recipe=experiments/improved_baselines/recipe.py --workdir=runs/improved_baselines --jobs=2

Three seeds of `clip` and `rocket`, one of each further arm; with the argument `full` three of all. The last rows
compare at equal samples: a CLIP as short as `rocket`, and with `full` a `rocket` as long as `clip` (thrice the cost).
"""

from clipjax.recipe import arms, further_seeds, rows, table, train
from experiments.improved_baselines.arms import ARMS
from experiments.improved_baselines.configs.small import VIEWS

MAIN, SEEDS = ARMS[:2], (0, 1, 2)
# Title -> (name, arm, samples) of what compares at equal samples, and what of it only `full` runs.
SHORT = {"clip, a third": ("clip-a-third", "clip", VIEWS // 3)}
LONG = {"rocket, threefold": ("rocket-threefold", "rocket", VIEWS)}
COLUMNS = {
    "seen R@5": "seen/text_to_image/R@5",
    "unseen R@5": "unseen/text_to_image/R@5",
    "category": "category/mean_per_class",
}


def get_recipe(arg=None):
    few = further_seeds(arg)
    equal = SHORT | (LONG if arg else {})
    seen = "seen R@5"
    return [
        *arms("configs/small.py", MAIN, SEEDS),
        *arms("configs/small.py", ARMS[2:], few),
        *(
            train(name, f"configs/small.py:{arm}", {"total_samples": samples})
            for name, arm, samples in equal.values()
        ),
        table(
            "results",
            rows(MAIN, SEEDS)
            | rows(ARMS[2:], few)
            | {t: name for t, (name, _, _) in equal.items()},
            COLUMNS,
            baseline="clip",
            compare=[
                ("rocket", "clip", seen),
                *((arm, arm.partition("_")[0], seen) for arm in ARMS[2:]),
            ],
        ),
    ]
