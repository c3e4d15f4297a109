"""Whether a format can say what a model is: the way there and back must give the same model.

A format turns its own description into a `model` section and a `model` section into its own description. The second
may write down what it knows without looking: if what it wrote means another model, the fields that differ are named.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from clipjax.data.presets import Preset
from clipjax.errors import UserError
from clipjax.models import TOWERS, model_parts

# How a model is trained or computed, not what it is; and what the parameters hold themselves.
FREE = ("dtype", "param_dtype", "attention", "quantize", "init_scale", "mean", "std")
# The same of its parts.
_FREE_OF_PARTS = (
    "dtype",
    "param_dtype",
    "remat",
    "unroll",
    "patch_dropout",
    "dropout",
    "drop_path",
    "chunk",
    "init_scale",
)
# Initial values: whether there are such parameters is what counts.
_PRESENCE = ("init_bias", "layer_scale")


def identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is, as flat fields: path -> value.

    Fields that say nothing of this model are left out (`pool_queries`, where no query pools), and those that may be
    left open are settled (`class_token` None), so that two descriptions of one model are equal.
    """
    flat: dict[str, Any] = {}
    for prefix, fields in _by_part(model).items():
        free = _FREE_OF_PARTS if prefix else FREE
        settled = _SETTLED.get(fields["kind"], dict)(fields) if prefix else fields
        for name, value in settled.items():
            if name in _PRESENCE:
                flat[prefix + name] = value is not None
            elif name not in free:
                flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def _flat(model: Mapping[str, Any]) -> dict[str, Any]:
    parts = _by_part(model).items()
    return {prefix + name: value for prefix, fields in parts for name, value in fields.items()}


def _by_part(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the model and of each of its parts, without those of their parts: prefix -> settings."""
    sections = model_parts(model)
    names = {name for name, _ in sections}
    found = {}
    for prefix, section in (("", model), *((f"{name}.", part) for name, part in sections)):
        found[prefix] = {k: v for k, v in dict(section).items() if prefix + k not in names}
    return found


def _without(fields: Mapping[str, Any], *idle: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in idle}


def _transformer(fields: dict[str, Any]) -> dict[str, Any]:
    """What image and text transformers share."""
    fields = _adapted(fields) | {"mlp_ratio": round(fields["mlp_ratio"] * fields["width"])}
    if not fields.get("experts"):
        return _without(fields, "experts_per_token", "moe_layers")
    return fields | {"moe_layers": fields["moe_layers"] or fields["depth"]}


def _adapted(fields: dict[str, Any]) -> dict[str, Any]:
    """What every tower that can have adapters shares."""
    return fields if fields.get("lora_rank") else _without(fields, "lora_alpha", "lora_targets")


def _vit(fields: dict[str, Any]) -> dict[str, Any]:
    pool, ratio = fields["pool"], fields["mlp_ratio"]
    if fields["class_token"] is None:
        fields = fields | {"class_token": pool == "class"}
    if not fields["class_token"]:
        fields = _without(fields, "class_position")
    if pool in ("map", "attention"):
        fields = fields | {"pool_heads": fields["pool_heads"] or fields["heads"]}
    else:
        fields = _without(fields, "pool_heads")
    if pool == "map":
        pool_ratio = ratio if fields["pool_mlp_ratio"] is None else fields["pool_mlp_ratio"]
        fields = fields | {"pool_mlp_ratio": round(pool_ratio * fields["width"])}
    else:
        fields = _without(fields, "pool_mlp_ratio")
    if pool == "attention":
        fields = fields | {"pool_width": fields["pool_width"] or fields["width"]}
    else:
        fields = _without(fields, "pool_queries", "pool_width")
    if fields["rope"] is None:
        fields = _without(fields, "rope_grid")
    if not fields["qkv_bias"]:
        fields = _without(fields, "key_bias")
    if fields["mlp"] == "swiglu" and pool != "map" and fields["stem"] == "patch":
        fields = _without(fields, "activation")
    return _transformer(fields)


def _text(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["pool"] != "eot":
        fields = _without(fields, "end_token")
    if not fields["class_token"]:
        fields = _without(fields, "pad_id", "class_mask")
    return _transformer(fields)


def _resnet(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"heads": fields["heads"] or fields["width"] * 32 // 64}


_SETTLED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "vit": _vit,
    "transformer": _text,
    "bert": _adapted,
    "resnet": _resnet,
}


class Difference(NamedTuple):
    """A field of two descriptions of a model that do not mean the same."""

    name: str
    mine: Any
    theirs: Any


def compare(model: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """The fields in which two models are not the same; of parts of two kinds, the kind alone."""
    mine, theirs = identity(model), identity(other)
    raw, raw_theirs = _flat(model), _flat(other)
    parts = dict.fromkeys(part for both in (model, other) for part, _ in model_parts(both))
    kinds = [
        Difference(name, raw.get(name), raw_theirs.get(name))
        for name in (f"{part}.kind" for part in parts)
    ]
    wrong = [kind for kind in kinds if kind.mine != kind.theirs]
    parted = tuple(kind.name.removesuffix("kind") for kind in wrong)
    for name in dict.fromkeys((*mine, *theirs)):
        if name.startswith(parted) or name.endswith(".kind"):
            continue
        # What only one of them has follows from another field, which differs.
        if name in mine and name in theirs and mine[name] != theirs[name]:
            settled = raw[name] is not None and raw_theirs[name] is not None
            presence = name.rpartition(".")[2] in _PRESENCE
            shown = (raw, raw_theirs) if settled or presence else (mine, theirs)
            wrong.append(Difference(name, shown[0][name], shown[1][name]))
    return wrong


def differences(model: Mapping[str, Any], understood: Mapping[str, Any]) -> list[str]:
    """What `understood` takes for another than it is, as parts of a sentence; each names a field."""
    return [
        f"model.{name} = {mine!r} (it would be {theirs!r})"
        for name, mine, theirs in compare(model, understood)
    ]


def check_expressed(model: Mapping[str, Any], understood: Mapping[str, Any], what: str) -> None:
    """Refuses to write a model that the format's own loader would take for another one.

    Args:
      model: what is to be written.
      understood: what this library reads out of what would be written.
      what: the format, for the error.

    Raises:
      UserError: names every field that the format cannot express.
    """
    wrong = differences(model, understood)
    if wrong:
        raise UserError(f"{what} cannot express {', '.join(wrong)}.")


def check_parts(model: Mapping[str, Any], what: str) -> None:
    """Refuses a model with more than an image tower and a text tower: no format but clipjax's own has more.

    Raises:
      UserError: names the part.
    """
    for part, fields in model_parts(model):
        if part not in TOWERS:
            raise UserError(
                f"{what} has no place for this model's part {part!r} (model.{part}.kind = {fields['kind']!r}); "
                f"--without={part} leaves it out, and clipjax's own format takes it."
            )


def has_towers(model: Mapping[str, Any], image: str | None, text: str | None) -> bool:
    """Whether a model's towers are of these kinds; one that it lacks fits any, None must be lacking."""
    return all(
        model[tower]["kind"] == kind
        for tower, kind in (("image", image), ("text", text))
        if tower in model
    )


def check_named(
    model: Mapping[str, Any], what: str, *, image: tuple[str, ...] = (), text: tuple[str, ...] = ()
) -> None:
    """Refuses a model whose towers are not among those that a format has; empty: it has none such.

    Raises:
      UserError: names the tower.
    """
    for tower, kinds in (("image", image), ("text", text)):
        kind = model[tower]["kind"] if tower in model else None
        if kind is None and kinds:
            raise UserError(
                f"{what} is for models with an image tower and a text tower, and this one has no {tower} tower."
                if image and text
                else f"{what} is for {tower} towers, and this model has none."
            )
        if kind is not None and not kinds:
            raise UserError(
                f"{what} has no {tower} towers, and this model has one (model.{tower}.kind = {kind!r}); "
                f"--without={tower} leaves it out."
            )
        if kind is not None and kind not in kinds:
            known = " and ".join(map(repr, kinds))
            raise UserError(
                f"{what} cannot express model.{tower}.kind = {kind!r}; of {tower} towers it has {known}."
            )


def check_preset(
    config: Mapping[str, Any], preset: Preset, what: str, free: tuple[str, ...] = ()
) -> None:
    """Refuses images that are prepared otherwise than a format, which cannot say how, takes for granted.

    Fields in `free` may differ.

    Raises:
      UserError: names what differs.
    """
    mine = Preset.of(config)
    wrong = [
        f"{'model' if name in ('mean', 'std') else 'preprocess'}.{name} = {ours!r} (it would be {theirs!r})"
        for name, ours, theirs in zip(Preset._fields, mine, preset, strict=True)
        if ours != theirs and name not in free
    ]
    if wrong:
        raise UserError(
            f"{what} cannot express {', '.join(wrong)}: its files do not say how images are prepared."
        )
