"""ALIP in minutes on two CPU cores, on the composed scenes of CLOC's comparison; configs/small.py:ARM_NOISE.

The raw text of a scene is a keyword of one of its objects, in NOISE (0 or 30) per cent of them another scene's; the
synthetic caption is the list of objects. Arms: `raw` is CLIP on the raw texts alone; the others train on both,
`ungated` with all weights 1, `sample` with the weight of the sample (Ws), `all` with Ws, Wt and Wc: ALIP.
"""

from experiments.alip.model import FREEZE
from experiments.cloc.configs import scenes

GATES = {
    "ungated": dict(sample_gate=0.0, raw_gate=0.0, synthetic_gate=0.0),
    "sample": dict(raw_gate=0.0, synthetic_gate=0.0),
    "all": {},
}
ARMS = ("raw", *GATES)


def source(entry, share):
    return {"kind": "experiments.alip.sources:RawAndSynthetic", "scenes": entry, "share": share}


def get_config(arg="all_30"):
    arm, _, noise = arg.partition("_")
    if arm not in ARMS or noise not in ("0", "30"):
        raise ValueError(f"there is no arm {arg!r}; there are {', '.join(ARMS)}, each _0 and _30")
    config = scenes.get_config("clip")  # model, augmentation and optimizer
    train, held_out = config.data.sources.scenes.to_dict(), scenes.held_out()
    config.data.sources = {"scenes": source(train, int(noise) / 100)}
    fields = ("raw",) if arm == "raw" else ("raw", "synthetic")
    policy = {"kind": "experiments.alip.features:Fields", "fields": fields}
    config.data.features.text.captions = policy
    retrieval = {"kind": "retrieval", "source": source(held_out, 0.0), "every": None}
    config.evals = {
        "lists": retrieval | {"text_fields": "synthetic"},
        "keywords": retrieval | {"text_fields": "keywords"},
    }
    if arm != "raw":
        config.model.kind = "experiments.alip.model:GatedDualEncoder"
        config.optim.freeze = (FREEZE, *config.optim.freeze)
        loss = {"kind": "experiments.alip.losses:gated_contrastive", **GATES[arm]}
        config.losses = {"gated": loss}
        detector = {"kind": "experiments.alip.evals:ExchangedPairs", "every": None}
        fresh = train | {"length": 500, "seed": 1}  # not seen, but of training's styles
        config.evals.exchanged = detector | {"source": source(fresh, 0.3)}
        config.evals.exchanged_held_out = detector | {"source": source(held_out, 0.3)}
    return config
