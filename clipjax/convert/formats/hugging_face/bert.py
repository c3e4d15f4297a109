"""BERT, RoBERTa and XLM-R in transformers, and the sentence encoders made of them (MiniLM, multilingual E5).

How tokens become one vector is not in config.json: sentence-transformers' 1_Pooling/config.json says so, or
--model=mean, class or pooler; else it is the pooler where the file has one (transformers' `pooler_output`), and the
mean of the tokens.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipjax.convert.blocks import linear, norm
from clipjax.convert.express import has_towers
from clipjax.convert.formats.base import Weights
from clipjax.convert.formats.hugging_face import towers
from clipjax.convert.tables import KeyTable, Row
from clipjax.errors import UserError
from clipjax.models import model_section, text_section

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")
WRITTEN = ("bert", "roberta", "xlm-roberta")
PRESET = None
PREFIXES = ()
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "class"}
POOLING = "clipjax_pooling"  # our key beside those of config.json, never written there

_DEFAULTS = dict(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
)
_PAD = {"bert": 0, "roberta": 1, "xlm-roberta": 1}


def pooling(weights: Weights) -> str | None:
    """What sentence-transformers' files say of it; None if there are none.

    Raises:
      UserError: a pooling that clipjax does not have.
    """
    found = weights.json("1_Pooling/config.json")
    if found is None:
        return None
    modes = [mode for mode, on in found.items() if mode.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(f"1_Pooling/config.json: the pooling {modes} is not supported.")
    return _POOLINGS[modes[0]]


def pooling_files(model: Mapping[str, Any], pool: str) -> dict[str, Any]:
    """sentence-transformers' files for a pooling; none for BERT's own pooler."""
    if pool == "pooler":
        return {}
    modes = {mode: name == pool for mode, name in _POOLINGS.items()}
    width = dict(word_embedding_dimension=model["text"]["width"])
    parts = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
    modules = [
        dict(idx=i, name=str(i), path=path, type=f"sentence_transformers.models.{name}")
        for i, (path, name) in enumerate(parts)
    ]
    return {"1_Pooling/config.json": width | modes, "modules.json": modules}


def tower(config: Mapping[str, Any], pool: str) -> ConfigDict:
    """The text tower of a config.json."""
    kind = config["model_type"]
    config = _DEFAULTS | dict(pad_token_id=_PAD[kind]) | config
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError("config.json: clipjax's BERT has absolute positions only.")
    pad_id = config["pad_token_id"]
    # RoBERTa's positions begin after that of the padding.
    offset = 0 if kind == "bert" else pad_id + 1
    return text_section(
        "bert",
        length=config["max_position_embeddings"] - offset,
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        position_offset=offset,
        type_vocab=config["type_vocab_size"],
        pad_id=pad_id,
        norm_epsilon=config["layer_norm_eps"],
        activation=towers.activation(config["hidden_act"]),
        pool=pool,
    )


def to_model(config: Mapping[str, Any], keys: Collection[str]) -> ConfigDict:
    """The `model` section of a config.json."""
    has_pooler = any(key.endswith("pooler.dense.weight") for key in keys)
    pool = config.get(POOLING) or ("pooler" if has_pooler else "mean")
    if pool not in ("mean", "class", "pooler"):
        raise UserError(f"--model must be mean, class or pooler for a BERT, not {pool!r}.")
    text = tower(config, pool)
    return model_section(
        text=text, kind="text_encoder", embed_dim=text.width, text_projection="none"
    )


def tower_config(text: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The inverse of `tower`, without the pooling."""
    return dict(
        model_type=kind,
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        num_hidden_layers=text["depth"],
        num_attention_heads=text["heads"],
        intermediate_size=text["mlp_dim"],
        hidden_act=towers.activation_name(text["activation"]),
        max_position_embeddings=text["max_positions"],
        type_vocab_size=text["type_vocab"],
        pad_token_id=text["pad_id"],
        layer_norm_eps=text["norm_epsilon"],
    )


def from_model(model: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config.json of a `model` section, with the pooling."""
    name = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}[kind]
    text = model["text"]
    return dict(architectures=[name]) | tower_config(text, kind) | {POOLING: text["pool"]}


def rows(prefix: str = "") -> list[Row]:
    """Keys of the encoder that begin with `prefix`."""
    source, target = f"{prefix}encoder.layer.{{i}}", "text/layer_{i}"
    parts = ("query", "key", "value")
    return [
        Row(f"{prefix}embeddings.word_embeddings.weight", "text/token_embedding"),
        Row(f"{prefix}embeddings.position_embeddings.weight", "text/position_embedding"),
        Row(f"{prefix}embeddings.token_type_embeddings.weight", "text/type_embedding"),
        *norm(f"{prefix}embeddings.LayerNorm", "text/embedding_norm"),
        *(
            row
            for part in parts
            for row in linear(f"{source}.attention.self.{part}", f"{target}/attention/{part}")
        ),
        *linear(f"{source}.attention.output.dense", f"{target}/attention/out"),
        *norm(f"{source}.attention.output.LayerNorm", f"{target}/attention_norm"),
        *linear(f"{source}.intermediate.dense", f"{target}/mlp_in"),
        *linear(f"{source}.output.dense", f"{target}/mlp_out"),
        *norm(f"{source}.output.LayerNorm", f"{target}/mlp_norm"),
        *linear(f"{prefix}pooler.dense", "text/pooler"),
    ]


DROPPABLE = ("embeddings.position_ids",)  # 0, 1, 2, ...
POOLER = ("pooler.dense.weight", "pooler.dense.bias")


def fits(model: Mapping[str, Any]) -> bool:
    """Whether a model has such a tower, and nothing else."""
    return has_towers(model, None, "bert")


def table(model: Mapping[str, Any]) -> KeyTable:
    """Keys of a model. A pooler that the model does not use is written as zeros: transformers looks for one."""
    text = model["text"]
    unused = {}
    if text["pool"] != "pooler":
        shapes = ((text["width"], text["width"]), (text["width"],))
        unused = {key: np.zeros(s, np.float32) for key, s in zip(POOLER, shapes, strict=True)}
    return KeyTable("a BERT of transformers", rows(), DROPPABLE, written=unused)
