"""open_clip: a directory with open_clip_config.json, or weights (training files too) with --model.

Its config says what the model is, but for the activation of bare weights: plain names mean GELU, names that end in
"-quickgelu" OpenAI's; weights loaded under the wrong one lose points without an error, so a file without a config needs
--model, the name of a model or an open_clip config.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clipjax.checkpoint import pack_tokenizer
from clipjax.convert import open_clip_config, timm_keys
from clipjax.convert.clip_keys import (
    RESNET_DROPPABLE,
    logit_rows,
    resnet_rows,
    text_rows,
    vit_rows,
)
from clipjax.convert.express import check_expressed, check_named
from clipjax.convert.folders import read_json
from clipjax.convert.formats.base import Description, Export, Options, Weights
from clipjax.convert.formats.hugging_face import bert
from clipjax.convert.formats.open_clip_tokenizer_files import find_open_clip, open_clip_files
from clipjax.convert.layouts import LINEAR
from clipjax.convert.open_clip_export import from_model
from clipjax.convert.tables import KeyTable, Row
from clipjax.data.presets import PRESETS, Preset, from_open_clip, to_open_clip
from clipjax.data.tokenizers import Tokenizer
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.errors import UserError
from clipjax.models.variants import model_config

NAME = "open_clip"
CONFIG = "open_clip_config.json"

# The part of a CoCa that writes captions.
_DECODER = (
    "text_decoder.text_projection",
    "text_decoder.positional_embedding",
    *(f"text_decoder.ln_final.{kind}" for kind in ("weight", "bias")),
    *(
        f"text_decoder.{stack}.{{i}}.{name}"
        for stack in ("resblocks", "cross_attn")
        for name in (
            *(f"{n}.{k}" for n in ("ln_1", "ln_1_kv", "ln_2") for k in ("weight", "bias")),
            *("attn.in_proj_weight", "attn.in_proj_bias"),
            *(
                f"{n}.{k}"
                for n in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")
                for k in ("weight", "bias")
            ),
            *("ls_1.gamma", "ls_2.gamma"),
        )
    ),
)


def recognise(weights: Weights) -> bool:
    """An open_clip_config.json, or its keys."""
    if weights.json(CONFIG) is not None:
        return True
    keys = weights.tensors.keys()
    return "logit_scale" in keys and any(key.startswith("visual.") for key in keys)


def describe(weights: Weights, options: Options) -> Description:
    """See `formats.base.Format`."""
    described = weights.json(CONFIG)
    if options.model is not None:
        described = _named(options.model)
    if described is None:
        raise UserError(
            f"{str(weights.path)!r} does not say which model it is (its activation is not in the weights); add "
            "--model=NAME, such as ViT-B-32 or ViT-B-32-quickgelu, or --model=FILE.json, an open_clip config."
        )
    config = described.get("model_cfg", described)
    shapes = {key: tensor.shape for key, tensor in weights.tensors.items()}
    layout = open_clip_config.Layout.of(config, shapes, _hf_config(weights, config))
    model = open_clip_config.to_model(config, layout)
    preset, notes = _preset(described, model)
    text = model.text
    tokenizer, kept = find_open_clip(
        weights.folder, config["text_cfg"], text.length, text.vocab_size
    )
    hints = {"open_clip": config, "layout": layout._asdict(), "tokenizer": kept}
    return Description(
        model, table(model, layout), preset, tokenizer, "bicubic_antialias", notes, hints
    )


def _hf_config(weights: Weights, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json of a text tower of transformers: known by its name, or in a directory of that name."""
    name = config["text_cfg"].get("hf_model_name")
    if name is None or name in open_clip_config.HF_TEXT:
        return open_clip_config.HF_TEXT.get(name)
    return weights.json(f"{Path(name).name}/config.json")


def _named(name: str) -> dict[str, Any]:
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise UserError(f"--model={name!r} is no file.")
        return read_json(Path(name))
    return {"model_cfg": from_model(model_config(name))}


def _preset(described: Mapping[str, Any], model: ConfigDict) -> tuple[Preset, tuple[str, ...]]:
    if "preprocess_cfg" not in described:
        siglip = "logit_bias" in described or model.get("init_bias") is not None
        return PRESETS["siglip" if siglip else "clip"], (
            "There is no preprocess_cfg; images are prepared as this family's are.",
        )
    preset, size = from_open_clip(described["preprocess_cfg"])
    if size is not None and size != model.image.size:
        raise UserError(
            f"{CONFIG}: preprocess_cfg makes images of {size} px, but the model takes {model.image.size} px."
        )
    return preset, ()


def table(model: Mapping[str, Any], layout: open_clip_config.Layout) -> KeyTable:
    """Keys of a model."""
    image, text = model["image"], model["text"]
    droppable: tuple[str, ...] = ()
    zeros: list[Any] = []
    if layout.timm is not None:
        rows = timm_keys.rows(layout.timm, "visual.trunk.")
        zeros = timm_keys.zeros(layout.timm)
        if layout.head:
            rows = [row for row in rows if not row.source.startswith("visual.trunk.head.")]
            rows += [
                Row("visual.head.proj.weight", "image_head/out/kernel", LINEAR),
                Row("visual.head.proj.bias", "image_head/out/bias"),
            ]
    elif image["kind"] == "resnet":
        rows, droppable = resnet_rows(), RESNET_DROPPABLE
    else:
        rows = vit_rows(model)
    if text["kind"] == "bert":
        rows += [
            *bert.rows("text.transformer."),
            Row("text.proj.weight", "text_head/out/kernel", LINEAR),
            Row("text.proj.0.weight", "text_head/fc_in/kernel", LINEAR),
            Row("text.proj.2.weight", "text_head/fc_out/kernel", LINEAR),
        ]
        unused = bert.DROPPABLE + (bert.POOLER if text["pool"] != "pooler" else ())
        droppable += tuple(f"text.transformer.{key}" for key in unused)
    else:
        rows += text_rows(model, layout.text)
    rows += logit_rows(layout.one_dimensional)
    return KeyTable("a model of open_clip", tuple(rows), droppable + _DECODER, tuple(zeros))


def export(config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]) -> Export:
    """A directory that `open_clip.create_model_and_transforms("local-dir:DIR")` loads."""
    model = config.model
    check_named(model, "open_clip", image=("vit", "resnet"), text=("transformer", "bert"))
    described = from_model(model, hints)
    was = hints.get("layout", {})
    shapes = {"logit_scale": (1,) if described.get("nonscalar_logit_scale") else ()}
    layout = open_clip_config.Layout.of(described, shapes, was.get("hf_config"))
    check_expressed(model, open_clip_config.to_model(described, layout), "open_clip")
    files: dict[str, bytes] = {}
    if tokenizer is not None:
        additions, files = open_clip_files(tokenizer, hints.get("tokenizer", {}), model.text.length)
        described["text_cfg"] = described["text_cfg"] | additions
    name = described["text_cfg"].get("hf_model_name")
    if name is not None and name not in open_clip_config.HF_TEXT:
        files[f"{Path(name).name}/config.json"] = (
            json.dumps(layout.hf_config, indent=2) + "\n"
        ).encode()
    whole = {
        "model_cfg": described,
        "preprocess_cfg": to_open_clip(Preset.of(config), model.image.size),
    }
    files[CONFIG] = (json.dumps(whole, indent=2) + "\n").encode()
    notes = ()
    if tokenizer is not None and not repairs(tokenizer):
        notes = (
            "open_clip repairs every text before its tokenizer sees it (wrongly decoded characters, HTML references, "
            "white space), and this model's does not, so such texts get other ids there (docs/tokenizers.md).",
        )
    keys = table(model, layout)
    return Export(keys, "open_clip_model.safetensors", files, {"format": "pt"}, notes)


def repairs(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer repairs texts, as all of open_clip's do."""
    return isinstance(tokenizer, ClipBPE) or bool(pack_tokenizer(tokenizer)["config"].get("repair"))
