"""The smallest run that has everything: two topics that share a pseudo-word."""

from pathlib import Path

from clipjax.config import import_file

paper = import_file(Path(__file__).with_name("paper.py"))


def get_config(arg="train"):
    source = {"kind": f"{paper.HERE}.windows:Planted", "words": 8, "grouped": True, "positions": 2}
    sizes = dict(vocabulary=16, senses=2, embed_dim=16, candidates=4)
    config = paper.build(arg, source, epoch=16, batch_size=16, lr=1.0, **sizes)
    config.losses.entropy = {
        "kind": f"{paper.HERE}.losses:entropy_bonus",
        "weight": paper.GAMMA,
    }
    clusters = {"kind": f"{paper.HERE}.evals:ContextClusters", "source": source, "clusters": 2}
    config.evals = {**config.evals, "clusters": clusters}
    config.checkpoint.update(every="1 steps", keep=None)
    config.log.tensorboard = False
    return config
