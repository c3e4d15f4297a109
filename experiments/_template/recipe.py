"""Both arms with three seeds, the crop head taken off again, and the table."""

from clipjax.recipe import arms, folder, rows, stage, table

ARMS, SEEDS = ("plain", "crop"), (0, 1, 2)


def get_recipe():
    return [
        *arms("configs/small.py", ARMS, SEEDS),
        stage("without", "experiments._template.stages:plain", folder("crop-0")),
        table(
            "results",
            rows(ARMS, SEEDS),
            {"seen R@5": "seen/text_to_image/R@5", "unseen R@5": "unseen/text_to_image/R@5"},
            baseline="plain",
            compare=[("crop", "plain", "unseen R@5")],
        ),
    ]
