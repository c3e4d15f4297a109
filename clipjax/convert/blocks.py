"""Rows that many formats share: layers of torch, and transformer blocks under the names of each family.

A family's rows cover every option of its blocks; only those whose parameters a model has take part.
"""

from collections.abc import Sequence

import numpy as np

from clipjax.convert.layouts import FLAT, LEADING_1, LINEAR, Layout
from clipjax.convert.tables import Row

IMAGE_BLOCKS = "image/transformer/blocks/{i}"
TEXT_BLOCKS = "text/transformer/blocks/{i}"

# The places of queries, keys and values in the fused parameters [W, 3, H, d] and [3, H, d].
_KERNEL_PART = {"query": np.s_[:, 0], "key": np.s_[:, 1], "value": np.s_[:, 2]}
_BIAS_PART = {"query": (0,), "key": (1,), "value": (2,)}


def linear(source: str, target: str, **where: int) -> list[Row]:
    """A `torch.nn.Linear`, with or without bias."""
    return [
        Row(f"{source}.weight", f"{target}/kernel", LINEAR, **where),
        Row(f"{source}.bias", f"{target}/bias", **where),
    ]


def norm(source: str, target: str, **where: int) -> list[Row]:
    """A `torch.nn.LayerNorm`."""
    return [
        Row(f"{source}.weight", f"{target}/scale", **where),
        Row(f"{source}.bias", f"{target}/bias", **where),
    ]


def conv_norm(conv: str, batch_norm: str, target: str, layout: Layout) -> list[Row]:
    """A convolution without bias, and the batch normalisation after it."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [
        Row(f"{conv}.weight", f"{target}/kernel", layout),
        *(Row(f"{batch_norm}.{name}", f"{target}/{param}") for name, param in names.items()),
    ]


def separate_qkv(
    sources: Sequence[str], target: str, biases: Sequence[str] | None = None
) -> list[Row]:
    """Three linear layers that are one fused parameter here.

    Args:
      sources: names of the query's, key's and value's layer.
      target: the attention.
      biases: keys of their biases; None: `source.bias`.
    """
    rows = []
    for part, source in zip(("query", "key", "value"), sources, strict=True):
        rows.append(
            Row(f"{source}.weight", f"{target}/qkv_kernel", LINEAR, select=_KERNEL_PART[part])
        )
    keys = [f"{source}.bias" for source in sources] if biases is None else biases
    for part, key in zip(("query", "key", "value"), keys, strict=True):
        rows.append(Row(key, f"{target}/qkv_bias", FLAT, select=_BIAS_PART[part]))
    return rows


def openai_block(source: str, target: str, first: int = 0, mlp: str | None = None) -> list[Row]:
    """A residual block of OpenAI's CLIP and open_clip; `first` is the number of the target's first layer there."""
    at = {"first": first}
    mlp = f"{source}.mlp" if mlp is None else mlp
    return [
        *norm(f"{source}.ln_1", f"{target}/norm_1", **at),
        Row(f"{source}.attn.in_proj_weight", f"{target}/attention/qkv_kernel", LINEAR, **at),
        Row(f"{source}.attn.in_proj_bias", f"{target}/attention/qkv_bias", FLAT, **at),
        *linear(f"{source}.attn.out_proj", f"{target}/attention/out", **at),
        Row(f"{source}.ls_1.gamma", f"{target}/scale_1/gamma", **at),
        *norm(f"{source}.ln_2", f"{target}/norm_2", **at),
        *linear(f"{mlp}.c_fc", f"{target}/mlp/fc_in", **at),
        *linear(f"{mlp}.c_proj", f"{target}/mlp/fc_out", **at),
        Row(f"{source}.ls_2.gamma", f"{target}/scale_2/gamma", **at),
    ]


def hugging_face_block(source: str, target: str) -> list[Row]:
    """An encoder layer of transformers' CLIP and SigLIP, and of what was modelled on them."""
    attention = f"{source}.self_attn"
    return [
        *norm(f"{source}.layer_norm1", f"{target}/norm_1"),
        *separate_qkv([f"{attention}.{x}_proj" for x in "qkv"], f"{target}/attention"),
        *linear(f"{attention}.out_proj", f"{target}/attention/out"),
        *norm(f"{source}.layer_norm2", f"{target}/norm_2"),
        *linear(f"{source}.mlp.fc1", f"{target}/mlp/fc_in"),
        *linear(f"{source}.mlp.fc2", f"{target}/mlp/fc_out"),
    ]


def map_pool(source: str, target: str) -> list[Row]:
    """SigLIP's attention pooling in transformers: `torch.nn.MultiheadAttention`, then a residual MLP."""
    three = ("query", "key", "value")
    return [
        Row(f"{source}.probe", f"{target}/probe", LEADING_1),
        Row(
            f"{source}.attention.in_proj_weight",
            tuple(f"{target}/{part}/kernel" for part in three),
            LINEAR,
        ),
        Row(f"{source}.attention.in_proj_bias", tuple(f"{target}/{part}/bias" for part in three)),
        *linear(f"{source}.attention.out_proj", f"{target}/out"),
        *norm(f"{source}.layernorm", f"{target}/norm"),
        *linear(f"{source}.mlp.fc1", f"{target}/mlp/fc_in"),
        *linear(f"{source}.mlp.fc2", f"{target}/mlp/fc_out"),
    ]
