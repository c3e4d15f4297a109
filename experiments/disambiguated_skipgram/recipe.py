"""Every run of this folder's README, and its table.

clipjax recipe --recipe=experiments/disambiguated_skipgram/recipe.py --workdir=runs/disambiguated_skipgram --jobs=2
"""

from clipjax.recipe import Column, call, folder, stage, table, train

HERE = "experiments.disambiguated_skipgram"
SEEDS = (0, 1, 2)
# Arm -> what it starts from.
ARMS = {"skipgram": None, "no_pretrain": None}
ARMS |= {"full": "pretrain", "wrong_sign": "pretrain_wrong_sign"}


def get_recipe():
    path = folder("corpus") + "/corpus.npz"
    steps = [call("corpus", "tools.build_word_corpus:build")]

    def run(arm, seed, init=None):
        overrides = {"seed": seed, "data.sources.windows.path": path}
        overrides |= {"evals.senses.source.path": path}
        overrides |= {} if init is None else {"init": {"": folder(init)}}
        return train(f"{arm}-{seed}", f"configs/small.py:{arm}", overrides)

    for seed in SEEDS:
        for arm, first in ARMS.items():
            if first is None:
                steps.append(run(arm, seed))
            else:
                spread = f"spread-{arm}-{seed}"
                steps.append(run(first, seed))
                steps.append(stage(spread, f"{HERE}.stages:spread_q", folder(f"{first}-{seed}")))
                steps.append(run(arm, seed, spread))
    columns = {
        "ARI": Column("senses/ari", digits=3, unit=""),
        "accuracy": Column("senses/accuracy"),
        "senses in use": Column("senses/senses"),
        "of a pseudo-word": Column("senses/pseudo_word_senses"),
    }
    rows = {arm: [f"{arm}-{seed}" for seed in SEEDS] for arm in ARMS}
    compare = [("full", "skipgram", "ARI"), ("full", "no_pretrain", "ARI")]
    compare.append(("full", "wrong_sign", "senses in use"))
    return [*steps, table("results", rows, columns, baseline="skipgram", compare=compare)]
