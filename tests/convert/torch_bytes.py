"""Writes torch's files byte by byte, honest or not, without torch."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping


def text(value: str) -> bytes:
    data = value.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def group(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + pickle.REDUCE


def mapping(items: Mapping[str, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    if isinstance(items, Mapping):
        items = [(text(key), value) for key, value in items.items()]
    body = b"".join(key + value for key, value in items)
    return pickle.EMPTY_DICT + pickle.MARK + body + pickle.SETITEMS


def sequence(*items: bytes) -> bytes:
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(items) + pickle.APPENDS


def storage(key: str = "0", count: int = 24, kind: str = "FloatStorage") -> bytes:
    parts = (text("storage"), name("torch", kind), text(key), text("cpu"), number(count))
    return group(*parts) + pickle.BINPERSID


def tensor(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    of: bytes | None = None,
) -> bytes:
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        of or storage(),
        number(offset),
        group(*map(number, shape)),
        group(*map(number, strides)),
        pickle.NEWFALSE,
        call(name("collections", "OrderedDict")),
    )


def module(path: str, fields: bytes) -> bytes:
    """A TorchScript object: `path` is that of its class."""
    created = name(*path.rsplit(".", 1)) + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    return created + fields + pickle.BUILD


def pickled(value: bytes, protocol: int = 2) -> bytes:
    return pickle.PROTO + bytes([protocol]) + value + pickle.STOP


def archive(
    value: bytes,
    records: Mapping[str, bytes] | None = None,
    scripted: bool = False,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip archive as torch.save or torch.jit.save writes it; by default one storage of 24 float32."""
    files = {"data.pkl": pickled(value)}
    for key, data in (records or {"data/0": struct.pack("<24f", *range(24))}).items():
        files[key] = data
    if scripted:
        files["constants.pkl"] = pickled(pickle.EMPTY_TUPLE)
    files["version"] = b"3\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as out:
        for key, data in files.items():
            out.writestr(zipfile.ZipInfo(f"archive/{key}"), data, compression)
    return stream.getvalue()
