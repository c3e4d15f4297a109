"""All arms of this folder's README, and its table.

  clipjax recipe --recipe=experiments/maple/recipe.py --workdir=runs/maple --jobs=2

Three seeds of every arm, a minute or two each; the starts, three runs of configs/quickstart.py, take most of the time.
"""

from clipjax.recipe import evaluate, folder, further_seeds, rows, stage, table, train
from experiments.maple.configs.small import DEPTH, WORDS
from experiments.maple.prompts import ARMS

SEEDS = (0, 1, 2)
COLUMNS = {f"{title}": f"generalisation/{title}" for title in ("base", "novel", "hm")}


def get_recipe(arg=None):
    further_seeds(arg)
    steps = []
    for seed in SEEDS:
        start = folder(f"start-{seed}")
        steps.append(train(f"start-{seed}", "../../configs/quickstart.py", {"seed": seed}))
        steps.append(evaluate(f"zero-shot-{seed}", start, "configs/small.py"))
        for name in ARMS:
            prompted = f"prompted-{name}-{seed}"
            given = dict(arm=name, depth=DEPTH, words=WORDS, seed=seed)
            steps.append(stage(prompted, "experiments.maple.stages:add_prompts", start, **given))
            overrides = {"seed": seed, "init": {"": folder(prompted)}}
            steps.append(train(f"{name}-{seed}", f"configs/small.py:{name}", overrides))
    compare = [("coupled", other, "hm") for other in ("zero-shot", *ARMS) if other != "coupled"]
    compare += [("coupled", "zero-shot", "novel"), ("zero-shot", "text", "novel")]
    results = rows(("zero-shot", *ARMS), SEEDS)
    return [*steps, table("results", results, COLUMNS, baseline="text", compare=compare)]
