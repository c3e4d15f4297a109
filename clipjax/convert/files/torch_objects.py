"""What torch's pickles are made of: storages, strided tensors on them, dtypes and a few plain values.

`SYMBOLS` lists every name that is understood. The arguments are those of torch's functions of the same names
(`torch/_utils.py`, `torch/jit/_pickle.py`); a storage is mentioned by a persistent id, `("storage", class, key,
device, number of elements)`, and lies elsewhere in the file.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clipjax.convert.files.pickles import Record, SetItems, Symbol, set_items
from clipjax.convert.files.tensor_file import Refused

DTYPES = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")


class Storage(NamedTuple):
    """A run of numbers that the file holds beside the pickle; without a dtype it is counted in bytes."""

    key: str
    dtype: np.dtype | None
    count: Any

    @property
    def itemsize(self) -> int:
        """Bytes of one element, as `count` counts them."""
        return self.dtype.itemsize if self.dtype else 1


class Strided(NamedTuple):
    """A tensor: a strided view of a storage. Offset and strides count elements; nothing is checked yet."""

    storage: Storage
    dtype: np.dtype
    offset: Any
    shape: Any
    strides: Any


class NumpyDtype:
    """`numpy.dtype(code)` of a scalar number."""

    __slots__ = ("code",)
    CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")

    def __init__(self, code: Any):
        if type(code) is not str or code not in self.CODES:
            raise TypeError("not the dtype of a simple number")
        self.code = code

    def check_state(self, state: Any) -> None:
        """Its attributes, of which only the byte order says anything: (version, order, ...)."""
        if type(state) is not tuple or state[1] not in ("<", "|", "="):
            raise TypeError("a dtype of another byte order")


def persistent(pid: Any) -> Storage:
    """The storage that a persistent id names."""
    tag, kind, key, _, count, *view = pid
    if tag != "storage" or type(kind) is not Symbol or type(key) is not str:
        raise TypeError("a persistent id that is no storage's")
    if any(part is not None for part in view):
        raise Refused(
            "has a storage that is a view of another, as only very old versions of torch wrote"
        )
    if kind.name in _UNTYPED:
        return Storage(key, None, count)
    return Storage(key, DTYPES[_STORAGES[kind.name.rpartition(".")[2]]], count)


def _strided(args: tuple[Any, ...]) -> Strided:
    """`_rebuild_tensor(storage, offset, shape, strides)`."""
    storage, offset, shape, strides = args
    if type(storage) is not Storage or storage.dtype is None:
        raise TypeError("a tensor without a storage")
    return Strided(storage, storage.dtype, offset, shape, strides)


def _plain_bits(metadata: tuple[Any, ...]) -> None:
    """Refuses tensors whose numbers are to be negated or conjugated when they are read."""
    if any(metadata):
        raise Refused(
            "has a tensor with lazy negation or conjugation; save it after .resolve_neg()"
        )


def _strided_v2(args: tuple[Any, ...]) -> Strided:
    """`_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata=None)`."""
    _plain_bits(args[6:])
    return _strided(args[:4])


def _strided_v3(args: tuple[Any, ...]) -> Strided:
    """`_rebuild_tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None)`."""
    storage, offset, shape, strides, _, _, dtype, *metadata = args
    _plain_bits(tuple(metadata))
    if type(storage) is not Storage or type(dtype) is not Symbol:
        raise TypeError("a tensor without a storage or dtype")
    return Strided(storage, DTYPES[dtype.name.removeprefix("torch.")], offset, shape, strides)


def _parameter(args: tuple[Any, ...]) -> Strided:
    """`_rebuild_parameter(tensor, requires_grad, hooks)`, with or without a state."""
    if type(args[0]) is not Strided:
        raise TypeError("a parameter that is no tensor")
    return args[0]


_REBUILD = {
    "torch._utils._rebuild_tensor": Symbol("torch._utils._rebuild_tensor", _strided),
    "torch._utils._rebuild_tensor_v2": Symbol("torch._utils._rebuild_tensor_v2", _strided_v2),
    "torch._utils._rebuild_tensor_v3": Symbol("torch._utils._rebuild_tensor_v3", _strided_v3),
    "torch._utils._rebuild_parameter": Symbol("torch._utils._rebuild_parameter", _parameter),
    "torch._utils._rebuild_parameter_with_state": Symbol(
        "torch._utils._rebuild_parameter_with_state", _parameter
    ),
}


def _from_type(args: tuple[Any, ...]) -> Strided:
    """`_rebuild_from_type_v2(function, type, arguments, state)`: a tensor with Python attributes."""
    function, _, arguments, _ = args
    if (
        type(function) is not Symbol
        or function.name not in _REBUILD
        or type(arguments) is not tuple
    ):
        raise TypeError("a tensor that is made in an unknown way")
    return _REBUILD[function.name].make(arguments)


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    """`OrderedDict()`; Python 2 gave it a list of pairs."""
    found: dict[Any, Any] = {}
    if args:
        (pairs,) = args
        if type(pairs) is not list or not all(type(pair) in (list, tuple) for pair in pairs):
            raise TypeError("an OrderedDict of something else than pairs")
        set_items(found, pairs)
    return found


def _counter(args: tuple[Any, ...]) -> dict[Any, Any]:
    (counts,) = args
    if type(counts) is not dict:
        raise TypeError("a Counter without counts")
    return counts


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    (shape,) = args
    if type(shape) is not tuple:
        raise TypeError("a torch.Size of no tuple")
    return shape


def _set(args: tuple[Any, ...]) -> SetItems:
    (items,) = args
    if type(items) is not list:
        raise TypeError("a set of no list")
    return SetItems(items)


def _device(args: tuple[Any, ...]) -> str:
    kind, *index = args
    if type(kind) is not str or not all(type(number) is int for number in index):
        raise TypeError("no device")
    return ":".join([kind, *map(str, index)])


def _encoded(args: tuple[Any, ...]) -> bytes:
    """`_codecs.encode(text, "latin1")`, protocol 2's way to write bytes."""
    text, encoding = args
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError("no bytes")
    return text.encode("latin-1")


def _numpy_scalar(args: tuple[Any, ...]) -> Any:
    dtype, data = args
    if type(dtype) is not NumpyDtype or type(data) is not bytes:
        raise TypeError("no simple number of numpy's")
    (value,) = np.frombuffer(data, f"<{dtype.code}")
    return value.item()


def _first(args: tuple[Any, ...]) -> Any:
    """`torch.jit._pickle`'s functions return their first argument; the rest is a type for the compiler."""
    return args[0]


_MAKERS = {
    "argparse.Namespace": lambda _: Record("argparse.Namespace"),
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "_codecs.encode": _encoded,
    "numpy.dtype": lambda args: NumpyDtype(args[0]),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    **{f"{module}.set": _set for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": _set for module in ("builtins", "__builtin__")},
    **{
        f"torch.jit._pickle.{name}": _first
        for name in (
            "build_intlist",
            "build_tensorlist",
            "build_doublelist",
            "build_boollist",
            "build_tensor_from_id",
            "restore_type_tag",
        )
    },
}
_NAMES = (
    *(f"torch.{name}" for name in DTYPES),
    *(f"torch.{name}" for name in _STORAGES),
    *(f"torch.cuda.{name}" for name in _STORAGES),
    *_UNTYPED,
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
)
SYMBOLS = {
    **_REBUILD,
    **{name: Symbol(name, make) for name, make in _MAKERS.items()},
    **{name: Symbol(name) for name in _NAMES},
}
