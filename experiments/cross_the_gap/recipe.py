"""All arms of this folder's README, and its table.

  clipjax recipe --recipe=experiments/cross_the_gap/recipe.py --workdir=runs/cross_the_gap --jobs=2

Three seeds of every arm: what is compared is a gain of a few points.
"""

from clipjax.recipe import Column, arms, rows, table

ARMS, SEEDS = ("scale_100", "scale_1", "image_image"), (0, 1, 2)
COLUMNS = {
    "gap": Column("gap/gap", lower_is_better=True),
    "image mAP": "images/native/mAP",
    "OTI gain": "images/oti_150/gain",
    "OTI gain, 500 steps": "images/oti_500/gain",
    "text mAP": "texts/native/mAP",
    "OVI gain": "texts/ovi_500/gain",
    "category": "zero_shot/native/acc@1",
    "OTI gain, category": "zero_shot/oti_150/gain",
    "OVI gain, category": "zero_shot/ovi_500/gain",
}


def get_recipe():
    others = ("scale_1", "image_image")
    compare = [("scale_100", arm, gain) for arm in others for gain in ("OTI gain", "OVI gain")]
    return [
        *arms("configs/small.py", ARMS, SEEDS),
        table(
            "results",
            rows(ARMS, SEEDS),
            COLUMNS,
            baseline="scale_100",
            compare=[("scale_1", "scale_100", "gap"), *compare],
        ),
    ]
