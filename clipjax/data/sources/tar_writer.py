"""Writes webdataset's tars: KEY.jpg (or png, webp, ...), KEY.txt and KEY.json a record, and their index."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipjax.data.sources import tar_index
from clipjax.data.sources.held import flat

# How an encoded image begins -> its extension.
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cJXL ", "jxl"),
)


def fit(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as a tar can hold it; see `held.flat`. `cls`, a file that tars may have, stays bytes."""
    label = record.get("cls")
    if not isinstance(label, bytes):
        return flat(record, "A tar", maps=True)
    rest = {k: v for k, v in record.items() if k != "cls"}
    return flat(rest, "A tar", maps=True) | {"cls": label}


def write(records: Iterable[Mapping[str, Any]], path: str | Path, prefix: str = "") -> int:
    """Writes one tar and its index; the tar is there whole or not at all. Returns how many records.

    Headers hold nothing but names and sizes, so that the same records make the same bytes.

    Args:
      records: as `fit` gives them.
      path: of the tar.
      prefix: of the keys, which go on with the record's number.
    """
    part, count = Path(f"{path}.part"), 0
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for count, fields in enumerate(records, 1):
            for extension, data in _members(fields):
                member = tarfile.TarInfo(f"{prefix}{count - 1:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
    tar_index.write(tar_index.scan(str(part)), tar_index.index_path(str(path)))
    part.replace(path)
    return count


def _members(fields: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """(extension, content); one caption is the txt, and several are in the json, which a reader without txt takes."""
    rest = dict(fields)
    image, texts, label = rest.pop("image"), rest.pop("text"), rest.pop("cls", None)
    members = [(_extension(image), image)]
    if len(texts) == 1:
        members.append(("txt", texts[0].encode("utf-8")))
    else:
        rest = {"text": texts} | rest
    if isinstance(label, bytes):
        members.append(("cls", label))
    elif label is not None:
        rest["cls"] = label
    members.append(("json", json.dumps(rest, ensure_ascii=False).encode("utf-8")))
    return members


def _extension(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return next((e for magic, e in _MAGIC if image.startswith(magic)), "img")
