"""What the settings of several features have in common, and the sentences that refuse them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.errors import UserError

DTYPES = ("float32", "float16", "bfloat16", "int32", "uint32", "int16", "int8", "uint8", "bool")


def struct(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one field of a sample."""
    return jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))


def whole(value: Any, least: int, where: str) -> int:
    """`value`, a whole number of at least `least`.

    Raises:
      UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{where} must be a whole number of at least {least}, not {value!r}.")
    return value


def declared(shape: Any, dtype: Any, where: str) -> jax.ShapeDtypeStruct:
    """The field that a `shape` and a `dtype` of a config declare.

    Raises:
      UserError: the shape is no tuple of whole numbers above 0, or the dtype none of `DTYPES`.
    """
    if not isinstance(shape, tuple | list) or any(
        isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape
    ):
        raise UserError(
            f"{where}.shape must be a tuple of whole numbers above 0, () for a single number, not {shape!r}."
        )
    if dtype not in DTYPES:
        raise UserError(f"{where}.dtype cannot be {dtype!r} (there are: {', '.join(DTYPES)}).")
    return struct(shape, jax.numpy.dtype(dtype))


def image_size(config: Mapping[str, Any], feature: str) -> int:
    """Side in pixels of the views of an image feature: its own `size`, or that of config.model.image.

    Raises:
      UserError: neither says it.
    """
    entry = config["data"]["features"].get(feature, {})
    size = entry.get("size")
    if size is None:
        size = (config["model"].get("image") or {}).get("size")
    where = f"config.data.features.{feature}.size"
    if size is None:
        raise UserError(
            f"The views of the feature {feature!r} have no size: set {where} (config.model has no image tower that "
            "says it), or leave the feature out."
        )
    return whole(size, 1, where)


def row_length(config: Mapping[str, Any], length: Any, feature: str, setting: str) -> int:
    """Ids of a row of texts: the feature's own, or those of config.model.text.

    Raises:
      UserError: neither says it, or it is no whole number above 0.
    """
    if length is None:
        length = (config["model"].get("text") or {}).get("length")
    where = f"config.data.features.{feature}.{setting}"
    if length is None:
        raise UserError(
            f"The rows of ids of the feature {feature!r} have no length: set {where} (config.model has no text tower "
            "that says it), or leave the feature out."
        )
    return whole(length, 1, where)


def tokenizer_section(config: Mapping[str, Any], section: Any, feature: str) -> Mapping[str, Any]:
    """The section of a feature's tokenizer: its own, or config.tokenizer.

    Raises:
      UserError: there is none.
    """
    section = config.get("tokenizer") if section is None else section
    if not isinstance(section, Mapping) or "kind" not in section:
        raise UserError(
            f"The feature {feature!r} needs a tokenizer; set config.tokenizer, or the feature's own `tokenizer`, to a "
            "section with a 'kind'."
        )
    return section
