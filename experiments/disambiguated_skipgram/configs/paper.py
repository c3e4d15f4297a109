"""Disambiguated Skip-gram at the paper's scale: `pretrain` (first stage), then the stage `spread_q`, then `train`.

  python tools/build_word_corpus.py --output=runs/wikipedia --text=wikipedia.txt --vocabulary=100000 --pseudo-words=0
  clipjax train --config=experiments/disambiguated_skipgram/configs/paper.py:pretrain --workdir=runs/pretrain
  clipjax stage --stage=experiments.disambiguated_skipgram.stages:spread_q --source=runs/pretrain --target=runs/spread
  clipjax train --config=experiments/disambiguated_skipgram/configs/paper.py --workdir=runs/train \
    --config.init="{'': 'runs/spread'}"

`build` makes the other configs of this folder, too.
"""

from ml_collections import ConfigDict

from clipjax.defaults import base_config
from clipjax.models import model_section

HERE = "experiments.disambiguated_skipgram"
GAMMA = -0.1


def build(
    stage: str,
    source: dict,
    *,
    epoch: int,
    batch_size: int,
    vocabulary: int,
    senses: int = 5,
    embed_dim: int = 300,
    window: int = 5,
    candidates: int = 64,
    lr: float = 0.1,
    epochs: int = 3,
) -> ConfigDict:
    """A stage's config: `pretrain` for one epoch, or `train` for `epochs`; an epoch is in samples of `source`."""
    first = {"pretrain": True, "train": False}[stage]
    config = base_config()
    config.batch_size = batch_size
    config.total_samples = epoch if first else epochs * epoch
    tables = dict(vocabulary=vocabulary, senses=senses, embed_dim=embed_dim)
    config.model = model_section(
        kind=f"{HERE}.model:SkipGram", shared=first, relaxed=not first, dtype="float32", **tables
    )
    targets = 2 * window if source.get("grouped") else 1
    lead = (source["positions"],) if "positions" in source else ()
    config.data.sources = {"windows": source}
    config.data.features = {
        "centre": {"kind": "column", "dtype": "int32", "shape": lead},
        "context": {"kind": "column", "dtype": "int32", "shape": (*lead, 2 * window)},
        "targets": {"kind": "column", "dtype": "int32", "shape": (*lead, targets)},
    }
    softmax = {"kind": f"{HERE}.losses:sampled_softmax", "candidates": candidates}
    config.losses = {"skipgram": softmax}
    if first:
        config.losses["entropy"] = {"kind": f"{HERE}.losses:entropy_bonus", "weight": GAMMA}
    else:
        config.losses.skipgram["temperature"] = ((0, 1.0), (epoch, 0.5))
    steps = config.total_samples // batch_size
    settings = {"steps": steps} | ({"values": (0.5,)} if first else {})
    config.optim.update(
        name=f"{HERE}.optim:momentum",
        settings=settings,
        lr=lr,
        schedule=f"{HERE}.optim:{'linear' if first else 'epochs'}",
        warmup=0,
        weight_decay=0.0,
        decay_rules=((".*", 0.0),),
        clip_values=(),
    )
    config.evals = {"senses": {"kind": f"{HERE}.evals:Senses", "source": source, "every": None}}
    return config


def get_config(arg: str = "train") -> ConfigDict:
    """A stage: `pretrain` or `train`."""
    source = {"kind": f"{HERE}.windows:Windows", "path": "runs/wikipedia/corpus.npz"}
    source |= {"vocabulary": 100_000}
    config = build(
        arg, source, epoch=34_000_000 * 128, batch_size=128, vocabulary=source["vocabulary"]
    )
    config.evals = {}  # SemEval's benchmarks are not packaged
    return config
