"""What the arms add to the config of a plain CLIP: the recipe, and losses beside it or beside CLIP's."""

from clipjax.errors import UserError

MODEL = "experiments.improved_baselines.model:Rocket"
LOSSES = "experiments.improved_baselines.losses"
POLICY = "experiments.improved_baselines.features:WeakAndStrong"
EXTRAS = ("barlip", "siamlip", "byolip", "swalip")
ARMS = ("clip", "rocket", *(f"{base}_{x}" for base in ("clip", "rocket") for x in EXTRAS))
WIDTHS = {"local": (4096, 4096), "barlow": (3000, 3000, 8192), "siamese": (2048, 128)}
WIDTHS |= {"prototype": (2048, 128), "prototypes": 3000}
# Of each extra loss the kind, its weight and the heads that it needs. Without strong views SwALIP has prototypes.
LOSS = {
    "barlip": ("barlow", 1.0, ("barlow",)),
    "siamlip": ("siamese_cosine", 1.0, ("siamese",)),
    "byolip": ("siamese_cosine", 1.0, ("siamese",)),
    "swalip": ("swapped_assignment", 0.2, ()),
    "clip_swalip": ("prototype_assignment", 0.2, ("prototype", "prototypes")),
}
# The copy follows in all but its own running statistics.
FOLLOW = (r"momentum/((?!.*norm_\d+/(mean|var)$).*)", r"\1", 0.99)


def parse(arm):
    """("rocket", ("byolip",)) of "rocket_byolip"."""
    if arm not in ARMS:
        raise UserError(f"There is no arm {arm!r}; there are {', '.join(ARMS)}.")
    base, *extras = arm.split("_")
    return base, tuple(extras)


def add(config, base, extras, strong, texts=(), total="sum", widths=WIDTHS, frozen_steps=100):
    """Makes of the config of a plain CLIP that of `base` with the losses `extras`.

    Args:
      config: its features are those of the weak view, its text tower has the dropout of strong texts.
      base: "clip" or "rocket".
      extras: of `EXTRAS`.
      strong: augmentation of the two strong views, where it differs from the weak one's.
      texts: settings of the caption policy but its captions.
      total: of the loss `cl2l`.
      widths: of the heads.
      frozen_steps: so long the prototypes stay as they are.
    """
    if base == "clip":
        config.model.text.dropout = 0.0  # it acts on strong texts alone
    names = [f"clip_{x}" if (base, x) == ("clip", "swalip") else x for x in extras]
    heads = {head: widths[head] for name in names for head in LOSS[name][2]}
    if base == "rocket":
        heads["local"] = widths["local"]
        config.data.features.image.views = ({}, strong, strong)
        drawn = config.data.features.text.captions.to_dict()
        config.data.features.text.captions = {"kind": POLICY, "captions": drawn, **dict(texts)}
        smoothing = 0.0 if "swalip" in extras else 0.1
        cl2l = {"kind": f"{LOSSES}:cl2l", "total": total, "label_smoothing": smoothing}
        config.losses = {"contrastive": cl2l}
        config.optim.clip_values += (("local_logit_scale", *config.optim.clip_values[0][1:]),)
    if not heads:
        return config
    config.model.update(kind=MODEL, **heads)
    freeze = [(r".*norm_\d+/(mean|var)", True)]
    for x, name in zip(extras, names, strict=True):
        config.losses[x] = {"kind": f"{LOSSES}:{LOSS[name][0]}", "weight": LOSS[name][1]}
    if "byolip" in extras:
        own = {k: v for k, v in config.model.items() if k not in ("local", "barlow")}
        config.model.momentum = own | {"predict": False}
        config.init = {"momentum": {"copy": ""}}
        config.optim.follow = (FOLLOW,)
        freeze.append(("momentum/.*", True))
    if "prototype" in heads:
        config.optim.decay_rules = (("centres", 1.0), *config.optim.decay_rules)
        start = frozen_steps * config.batch_size
        later = ("centres", ((start - 1, 0.0), (start, 1.0)))
        config.optim.lr_multipliers = (later, *config.optim.lr_multipliers)
    config.optim.freeze = (*freeze, *config.optim.freeze)
    return config
