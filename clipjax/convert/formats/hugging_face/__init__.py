"""Directories of transformers: config.json, safetensors (sharded or not), preprocessor and tokenizer.

`model_type` in config.json says which of the families it is; each is a module with

  MODEL_TYPES                 the model types that it reads
  WRITTEN                     those that `from_model` writes
  PRESET                      how its images are prepared where no preprocessor_config.json says so
  PREFIXES                    of the keys of single towers, which newer files leave out
  to_model(config, keys)      config.json -> `model` section
  from_model(model, kind)     and back, as one of `WRITTEN`
  table(model)                its keys
"""

import json
from collections.abc import Mapping, Set
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from clipjax.convert.express import differences
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.formats.hugging_face import bert, clip, dinov2, mlcd, siglip
from clipjax.convert.formats.tokenizer_files import find_hugging_face, hugging_face_files
from clipjax.convert.shapes import parameter_shapes
from clipjax.data.presets import Preset, from_hugging_face, to_hugging_face
from clipjax.data.tokenizers import Tokenizer
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.errors import UserError
from clipjax.models import TOWERS
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
        gemma = kind.startswith("siglip2") or model.text.vocab_size >= 256_000
        return "siglip2" if gemma else "siglip"
    return "metaclip_2" if kind.startswith("metaclip_2") else kind.split("_")[0]


def _single(model: ConfigDict) -> bool:
    return "image" not in model or "text" not in model


def _preset(
    weights: Weights, model: ConfigDict, family: Any
) -> tuple[Preset | None, tuple[str, ...]]:
    """How images are prepared, and what was taken for granted."""
    if "image" not in model:
        return None, ()
    found = weights.json("preprocessor_config.json")
    if found is None:
        note = "There is no preprocessor_config.json; images are prepared as this family's are."
        naflex = model.image.get("positions") == "naflex"
        return family.PRESET._replace(**({"resize": "naflex"} if naflex else {})), (note,)
    preset, size = from_hugging_face(found)
    if size is None or size == model.image.size:
        return preset, ()
    if family is dinov2:
        # transformers resamples the positions (of 518 px) for images of any size; here that is asked for.
        return preset, (
            f"preprocessor_config.json makes images of {size} px, and the positions are of {model.image.size} px, "
            f"which are taken; --size={size} resamples the positions as transformers does.",
        )
    raise UserError(
        f"preprocessor_config.json makes images of {size} px, but the model of config.json takes "
        f"{model.image.size} px."
    )


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A directory that `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained` load."""
    model = config.model
    shapes = parameter_shapes(model)
    described, family = _described(model, flatten_dict(shapes, sep="/").keys(), hints)
    table = family.table(model)
    table.entries(shapes)  # all parameters have a place
    if _single(model) and not hints.get("prefixed", True):
        table = table.without(family.PREFIXES)
    files = _files(config, tokenizer, described, hints)
    notes = ()
    if isinstance(tokenizer, ClipBPE):
        notes = (
            "clipjax repairs texts as OpenAI's and open_clip's CLIP do (wrongly decoded characters, HTML references); "
            "transformers' CLIP tokenizer does not, so such texts get other ids there (docs/tokenizers.md).",
        )
    return Export(table, "model.safetensors", files, {"format": "pt"}, notes)


def _described(
    model: ConfigDict, paths: Set[str], hints: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """The config.json of a model and its family.

    Raises:
      UserError: no model type is this model; what the nearest cannot express is named.
    """
    kinds = [(kind, f) for f in FAMILIES for kind in f.WRITTEN if f.fits(model)]
    if not kinds:
        towers = " and ".join(f"model.{t}.kind = {model[t].kind!r}" for t in TOWERS if t in model)
        raise UserError(f"transformers has no model with {towers}.")
    # The type that it came as is tried first.
    came = str(hints.get("model_type", ""))
    kinds.sort(key=lambda pair: -len(pair[0]) if came.startswith(pair[0]) else 0)
    misfits: dict[str, list[str]] = {}
    for kind, family in kinds:
        described = family.from_model(model, kind)
        keys = {row.source for row in family.table(model).rows if paths >= {*row.targets}}
        misfits[kind] = differences(model, family.to_model(described, keys))
        if not misfits[kind]:
            return described, family
    kind, wrong = min(misfits.items(), key=lambda item: len(item[1]))
    raise UserError(f"transformers' model type {kind!r} cannot express {', '.join(wrong)}.")


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
            Preset.of(config),
            model.image.size,
            kind,
            model.image.get("patch"),
            (model.image.size // model.image.patch) ** 2,
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
