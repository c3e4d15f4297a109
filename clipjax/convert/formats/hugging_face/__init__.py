"""Directories of transformers: config.json, safetensors (sharded or not), preprocessor and tokenizer.

`model_type` in config.json says which of the families it is; each is a module with

  MODEL_TYPES                 the model types that it reads
  WRITTEN                     those that `from_model` writes
  PRESET                      how its pictures are prepared where no preprocessor_config.json says so
  PREFIXES                    of the keys of single towers, which newer files leave out
  to_model(config, keys)      config.json -> `model` section
  from_model(model, kind)     and back, as one of `WRITTEN`
  table(model)                its keys
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.convert.express import check_expressed
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.formats.hugging_face import bert, clip, dinov2, mlcd, siglip
from clipjax.convert.formats.tokenizer_files import find_hugging_face, hugging_face_files
from clipjax.convert.shapes import parameter_shapes
from clipjax.data.presets import Preset, from_hugging_face, to_hugging_face
from clipjax.data.tokenizers import Tokenizer
from clipjax.errors import UserError
from clipjax.registry import nearest

NAME = "hugging_face"
FAMILIES = (clip, siglip, mlcd, dinov2, bert)
BY_TYPE = {kind: family for family in FAMILIES for kind in family.MODEL_TYPES}


def recognise(weights: Weights) -> bool:
    """A config.json with a model type."""
    config = weights.json("config.json")
    return config is not None and "model_type" in config


def describe(weights: Weights, options: Options) -> Description:
    """See `formats.base.Format`."""
    config = weights.json("config.json")
    if config is None:
        raise UserError(
            f"{str(weights.path)!r} has no config.json beside it, which says what model of transformers it is."
        )
    kind = config.get("model_type")
    if kind not in BY_TYPE:
        raise UserError(
            f"config.json: model_type {kind!r} is not among those that clipjax reads{nearest(str(kind), BY_TYPE)}."
        )
    family = BY_TYPE[kind]
    if family is bert:
        config = config | {bert.POOLING: options.model or bert.pooling(weights)}
    elif options.model is not None:
        raise UserError("config.json says which model it is; leave --model out.")
    try:
        model = family.to_model(config, weights.tensors.keys())
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"config.json is not that of a {kind!r} model: {error!r}.") from error
    table, prefixed = family.table(model), True
    if _single(model) and family.PREFIXES:
        prefixed = any(key.startswith(family.PREFIXES) for key in weights.tensors)
        table = table if prefixed else table.without(family.PREFIXES)
    preset, notes = _preset(weights, model, family)
    tokenizer, kept = None, {}
    if "text" in model and weights.folder is not None:
        text = model.text
        tokenizer, kept = find_hugging_face(
            weights.folder, tokenizer_family(model, kind), config, text.length, text.vocab_size
        )
    hints = {"model_type": kind, "prefixed": prefixed, "tokenizer": kept}
    return Description(model, table, preset, tokenizer, "bicubic", notes, hints)


def tokenizer_family(model: ConfigDict, kind: str) -> str:
    """Which tokenizer a model has, by its model type."""
    if kind.startswith("siglip"):
        return "siglip2" if model.text.vocab_size >= 256_000 else "siglip"
    return "metaclip_2" if kind.startswith("metaclip_2") else kind.split("_")[0]


def _single(model: ConfigDict) -> bool:
    return "image" not in model or "text" not in model


def _preset(
    weights: Weights, model: ConfigDict, family: Any
) -> tuple[Preset | None, tuple[str, ...]]:
    """How pictures are prepared, and what was taken for granted."""
    if "image" not in model:
        return None, ()
    found = weights.json("preprocessor_config.json")
    if found is None:
        note = "There is no preprocessor_config.json; pictures are prepared as this family's are."
        naflex = model.image.get("positions") == "naflex"
        return family.PRESET._replace(**({"resize": "naflex"} if naflex else {})), (note,)
    preset, size = from_hugging_face(found)
    if size is not None and size != model.image.size:
        raise UserError(
            f"preprocessor_config.json makes pictures of {size} px, but config.json's model takes {model.image.size} px."
        )
    return preset, ()


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A directory that `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained` load."""
    model, reasons = config.model, []
    shapes = parameter_shapes(model)
    # The type that it came as is tried first.
    kinds = [(kind, family) for family in FAMILIES for kind in family.WRITTEN]
    came = str(hints.get("model_type", ""))
    for kind, family in sorted(kinds, key=lambda pair: not came.startswith(pair[0])):
        if not family.fits(model):
            continue
        try:
            described = family.from_model(model, kind)
            table = family.table(model)
            understood = family.to_model(described, table.entries(shapes).keys())
            check_expressed(model, understood, f"transformers' model type {kind!r}")
        except UserError as error:
            reasons.append(str(error))
            continue
        if _single(model) and not hints.get("prefixed", True):
            table = table.without(family.PREFIXES)
        files = _files(config, tokenizer, described, hints)
        return Export(table, "model.safetensors", files, {"format": "pt"})
    if not reasons:
        reasons = ["No model of transformers that clipjax writes has these towers."]
    raise UserError(" ".join(reasons))


def _files(
    config: ConfigDict,
    tokenizer: Tokenizer | None,
    described: dict[str, Any],
    hints: Mapping[str, Any],
) -> dict[str, bytes]:
    """All files beside the weights."""
    model, kind = config.model, described["model_type"]
    files: dict[str, Any] = {}
    if "image" in model:
        files["preprocessor_config.json"] = to_hugging_face(
            Preset.of(config), model.image.size, kind, model.image.get("patch")
        )
    pool = described.pop(bert.POOLING, None)
    if pool is not None:
        files |= bert.pooling_files(model, pool)
    files["config.json"] = described
    written = {name: (json.dumps(f, indent=2) + "\n").encode() for name, f in files.items()}
    if tokenizer is not None:
        family = tokenizer_family(model, kind)
        written |= hugging_face_files(
            tokenizer, family, hints.get("tokenizer", {}), model.text.length
        )
    return written
