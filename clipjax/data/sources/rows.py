"""From a row of somebody's data set (columns, or files of a tar) to a raw record."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.bad import BadRecord

# Names under which data sets keep images and captions, the first that is there counts.
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "jxl", "bytes", "image_bytes", "img")
TEXTS = ("txt", "text", "caption", "captions", "alt_text", "TEXT", "top_caption")
LANGUAGES = ("language", "LANGUAGE", "lang")


def record(
    row: Mapping[str, Any],
    image: str | bool | None = None,
    text: str | Sequence[str] | None = None,
    language: str | None = None,
) -> dict[str, Any]:
    """The raw record of a row; columns that are neither image nor caption stay as they are.

    Args:
      row: column -> value. Images are bytes, arrays, or `{"bytes": ..., "path": ...}` as in Hugging Face's data sets;
        texts are strings, UTF-8 bytes, or lists of such.
      image: the image's column; None: the first of `IMAGES` that is there; False: the data set has no images, and the
        record's `image` is None.
      text: the captions' columns, all of them; None: the first of `TEXTS` that is there. Several also stay under their
        names, so that a caption policy can tell them apart.
      language: the column of the language's tag; None: the first of `LANGUAGES`; without any, "en".

    Raises:
      BadRecord: no image, or a text that is not UTF-8.
    """
    if image is None:
        image = next((k for k in IMAGES if row.get(k) is not None), "image")
    texts = [text] if isinstance(text, str) else text
    texts = texts or [k for k in TEXTS if row.get(k) is not None][:1]
    language = language or next((k for k in LANGUAGES if row.get(k)), "language")
    value = row.get(image) if image else None
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if value is None and image is not False:
        raise BadRecord("there is no image")
    known = {image, language, *(texts if len(texts) == 1 else ())}
    return {k: v for k, v in row.items() if k not in known} | {
        "image": value,
        "text": [t for name in texts for t in strings(row.get(name))],
        "language": row.get(language) or "en",
    }


def strings(value: Any) -> list[str]:
    """A text, or a list of them, as strings; None is no text."""
    if value is None:
        return []
    if isinstance(value, bytes):
        try:
            return [value.decode("utf-8")]
        except UnicodeDecodeError as error:
            raise BadRecord("text is not UTF-8") from error
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise BadRecord("text is not UTF-8")  # half a character, which no tokenizer takes
        return [value]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [s for item in value for s in strings(item)]
    raise BadRecord("text is neither a string nor a list of them")
