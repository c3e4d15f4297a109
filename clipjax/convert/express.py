"""Whether a format can say what a model is: the way there and back must give the same model.

A format turns its own description into a `model` section and a `model` section into its own description. The second
may write down what it knows without looking: if what it wrote means another model, the fields that differ are named.
"""

from collections.abc import Mapping
from typing import Any

from clipjax.data.presets import Preset
from clipjax.errors import UserError

# How a model is trained or computed, not what it is; and what the parameters hold themselves.
FREE = (
    "dtype",
    "param_dtype",
    "attention",
    "quantize",
    "init_scale",
    "image.remat",
    "image.unroll",
    "image.patch_dropout",
    "image.chunk",
    "text.remat",
    "text.unroll",
    "mean",
    "std",
)
# Initial values: whether there are such parameters is what counts.
_PRESENCE = ("init_bias", "image.layer_scale", "text.layer_scale")


def identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is, as flat fields: path -> value."""
    flat: dict[str, Any] = {}
    for name, value in dict(model).items():
        if name in ("image", "text"):
            flat |= {f"{name}.{field}": v for field, v in dict(value).items()}
        else:
            flat[name] = value
    for tower in ("image", "text"):
        if f"{tower}.mlp_ratio" in flat and f"{tower}.width" in flat:
            ratio = flat.pop(f"{tower}.mlp_ratio")
            flat[f"{tower}.mlp_ratio"] = round(ratio * flat[f"{tower}.width"])
    flat |= {name: flat[name] is not None for name in _PRESENCE if name in flat}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items() if k not in FREE}


def check_expressed(model: Mapping[str, Any], understood: Mapping[str, Any], what: str) -> None:
    """Refuses to write a model that the format's own loader would take for another one.

    Args:
      model: what is to be written.
      understood: what this library reads out of what would be written.
      what: the format, for the error.

    Raises:
      UserError: names every field that the format cannot express.
    """
    mine, theirs = identity(model), identity(understood)
    wrong = []
    for name in dict.fromkeys((*mine, *theirs)):
        if name not in theirs:
            wrong.append(f"model.{name} = {mine[name]!r} (it has no such part)")
        elif name not in mine:
            wrong.append(f"a model without {name} (it would have {theirs[name]!r})")
        elif mine[name] != theirs[name]:
            wrong.append(f"model.{name} = {mine[name]!r} (it would be {theirs[name]!r})")
    if wrong:
        raise UserError(f"{what} cannot express {', '.join(wrong)}.")


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
        has = tower in model
        if has and model[tower]["kind"] not in kinds:
            known = f"only {' and '.join(kinds)}" if kinds else "none"
            raise UserError(
                f"{what} cannot express the {tower} tower {model[tower]['kind']!r} (of such towers, {known})."
            )
        if kinds and not has:
            raise UserError(f"{what} needs an {tower} tower, and this model has none.")


def check_preset(
    config: Mapping[str, Any], preset: Preset, what: str, free: tuple[str, ...] = ()
) -> None:
    """Refuses pictures that are prepared otherwise than a format, which cannot say how, takes for granted.

    Fields in `free` may differ.

    Raises:
      UserError: names what differs.
    """
    mine = Preset.of(config)
    wrong = [
        f"{name} {ours!r} (it would be {theirs!r})"
        for name, ours, theirs in zip(Preset._fields, mine, preset, strict=True)
        if ours != theirs and name not in free
    ]
    if wrong:
        raise UserError(f"{what} cannot say how pictures are prepared: {', '.join(wrong)}.")
