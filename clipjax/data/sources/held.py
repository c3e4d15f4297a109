"""What a layout can hold of a raw record. What it cannot is refused with the field's name, and never lost silently."""

import io
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from clipjax.data.bad import BadRecord
from clipjax.data.sources.rows import IMAGES, strings
from clipjax.errors import UserError

DIMENSIONS = 2  # of an array that is written as nested lists


def whole(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record for ArrayRecord: bytes and arrays of numbers stay what they are, images too.

    Raises:
      BadRecord: an image of zero bytes or of another shape, a text that is not UTF-8.
      UserError: a field that msgpack does not have.
    """
    images = record.get("image")
    several = isinstance(images, list | tuple)
    for image in images if several else [images]:
        _check_image(image)
    if several and not images:
        raise BadRecord("there is no image")
    fields = {k: _storable(k, v) for k, v in _others(record).items()}
    return {"image": list(images) if several else images} | fields


def flat(record: Mapping[str, Any], layout: str, maps: bool) -> dict[str, Any]:
    """The record for layouts of files and columns: `image` is bytes, the other fields are what JSON has.

    An encoded image stays as it is; an array becomes a PNG. Arrays of numbers of at most two dimensions become lists.

    Args:
      record: a raw record.
      layout: its name, for the message.
      maps: whether it has maps.

    Raises:
      BadRecord: see `whole`.
      UserError: a field that it cannot hold, or several images.
    """
    image = record.get("image")
    if isinstance(image, list | tuple):
        if len(image) > 1:
            raise UserError(
                f"{layout} cannot hold the field 'image' of records with several images; write --to=array_record."
            )
        if not image:
            raise BadRecord("there is no image")
        (image,) = image
    _check_image(image)
    fields = {}
    for name, value in _others(record).items():
        if name in IMAGES or name == "txt":
            _refuse(layout, name, "would be taken for the image or the caption")
        fields[name] = _plain(layout, name, value, maps)
    return {"image": _png(image) if isinstance(image, np.ndarray) else bytes(image)} | fields


def _others(record: Mapping[str, Any]) -> dict[str, Any]:
    """All fields but the image; `text` as a list of strings."""
    texts = strings(record.get("text"))
    for text in texts:
        _check_text(text)
    fields = {k: v for k, v in record.items() if k not in ("image", "text")}
    # The file of a tar that `text` was made of; it would be read again instead of it.
    if isinstance(fields.get("txt"), bytes | str) and strings(fields["txt"])[0] in texts:
        del fields["txt"]
    return {"text": texts} | fields


def _check_image(image: Any) -> None:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise BadRecord("image array is not uint8 [H,W,3|4]")
    elif not isinstance(image, bytes | bytearray | memoryview):
        raise BadRecord("image is neither bytes, array nor image")
    elif not len(image):
        raise BadRecord("image has zero bytes")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord("text is not UTF-8") from error


def _png(pixels_HxWxC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HxWxC).save(file, "PNG")
    return file.getvalue()


def _storable(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        return value
    return _walk("ArrayRecord", name, value, True, _storable)


def _plain(layout: str, name: str, value: Any, maps: bool) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "buifU":
        if value.ndim > DIMENSIONS:
            _refuse(layout, name, f"is an array of {value.ndim} dimensions")
        return value.tolist()
    return _walk(layout, name, value, maps, lambda n, v: _plain(layout, n, v, maps))


def _walk(layout: str, name: str, value: Any, maps: bool, inner: Any) -> Any:
    """What JSON has, and what is in it."""
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list | tuple):
        return [inner(name, v) for v in value]
    elif isinstance(value, Mapping) and maps:
        if not all(isinstance(key, str) for key in value):
            _refuse(layout, name, "has a key that is no string")
        return {key: inner(name, v) for key, v in value.items()}
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            _refuse(layout, name, "has a number of more than 64 bits")
    elif value is not None and not isinstance(value, float):
        _refuse(layout, name, f"has a value of the type {type(value).__name__}")
    return value


def _refuse(layout: str, name: str, why: str) -> NoReturn:
    other = "" if layout == "ArrayRecord" else ", or write --to=array_record"
    raise UserError(
        f"{layout} cannot hold the field {name!r}, which {why}; leave it out with --drop {name}{other}."
    )
