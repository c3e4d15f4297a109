"""All arms of this folder's README, and its table.

  clipjax recipe --recipe=experiments/alip/recipe.py --workdir=runs/alip --jobs=2

Scenes are composed once and read from files. Three seeds of the arms that are compared, one of `sample_30`; with the
argument `full` three of it too.
"""

from clipjax.recipe import Column, arms, call, folder, further_seeds, rows, table

MAIN = ("raw_30", "ungated_30", "all_30", "ungated_0", "all_0")
OTHERS = ("sample_30",)
COLUMNS = {
    "image to list R@5": "lists/image_to_text/R@5",
    "list to image R@5": "lists/text_to_image/R@5",
    "keyword to image R@5": "keywords/text_to_image/R@5",
    "AUC": "exchanged/auc",
    "AUC, held-out style": "exchanged_held_out/auc",
    "weight of clean": Column("exchanged/weight_clean"),
    "of exchanged": Column("exchanged/weight_exchanged"),
}
COMPARE = (("all_30", "ungated_30"), ("ungated_30", "raw_30"), ("all_0", "ungated_0"))


def get_recipe(arg=None):
    few = further_seeds(arg)
    files = {"kind": "array_record", "files": f"{folder('scenes')}/*.array_record"}
    overrides = {"data.sources.scenes.scenes": files, "data.threads": 1}
    of_arms = {**rows(MAIN), **rows(OTHERS, few)}
    return [
        call("scenes", "experiments.cloc.scenes_on_disk:write", count=20_000),
        *arms("configs/small.py", MAIN, overrides=overrides),
        *arms("configs/small.py", OTHERS, few, overrides),
        table(
            "results",
            dict(sorted(of_arms.items())),
            COLUMNS,
            baseline="ungated_30",
            compare=[(a, b, column) for a, b in COMPARE for column in list(COLUMNS)[:3]],
        ),
    ]
