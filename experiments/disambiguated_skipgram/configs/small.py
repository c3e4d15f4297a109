"""An arm of the README's comparison, on WordNet's glosses and descriptions of ImageNet's classes.

pretrain, pretrain_wrong_sign    first stage, with gamma = -0.1 and 0.1
full, wrong_sign                 second stage: config.init = spread_q of those (the recipe does it)
no_pretrain                      second stage alone, as long as both
skipgram                         one sense a word, as long as both; its contexts are clustered by k-means
"""

from pathlib import Path

from clipjax.config import import_file

paper = import_file(Path(__file__).with_name("paper.py"))
V, K = 20_000, 3
POSITIONS, BATCH = 16, 64  # a batch has 1,024 positions of the corpus, about 6,000 targets
STEPS = 291  # of the first stage, and of each of the three epochs of the second
FIRST = BATCH * STEPS  # samples: a quarter of the corpus
RATE = 30.0
ARMS = ("pretrain", "pretrain_wrong_sign", "full", "wrong_sign", "no_pretrain", "skipgram")


def get_config(arg="full"):
    if arg not in ARMS:
        raise ValueError(f"there is no arm {arg!r}; there are {', '.join(ARMS)}")
    windows = f"{paper.HERE}.windows:Windows"
    corpus = {"kind": windows, "path": "runs/words/corpus.npz", "vocabulary": V, "grouped": True}
    corpus["positions"] = POSITIONS
    first = arg in ("pretrain", "pretrain_wrong_sign")
    alone = arg in ("no_pretrain", "skipgram")
    config = paper.build(
        "pretrain" if first else "train",
        corpus,
        epoch=FIRST * 4 // 3 if alone else FIRST,
        batch_size=BATCH,
        vocabulary=V,
        senses=1 if arg == "skipgram" else K,
        embed_dim=100,
        lr=RATE,
    )
    if not first and not alone:
        config.data.order = {"kind": "shuffle", "start": FIRST}  # what the first stage has not seen
    if arg == "pretrain_wrong_sign":
        config.losses.entropy.weight = -paper.GAMMA
    if arg == "skipgram":
        config.evals.senses.update(kind=f"{paper.HERE}.evals:ContextClusters", clusters=K)
    config.data.threads = 1
    config.checkpoint.every = "50%"
    config.log.tensorboard = False
    return config
