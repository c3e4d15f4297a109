"""Reads pickles as data: a machine for the operations that torch writes, which can call nothing of Python's.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever the program names. This
one knows a fixed set of names, each with a function of ours that makes an inert value; any other name is refused before
anything is done with it. The operations are described in Python's `pickletools`.
"""

import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clipjax.convert.files.tensor_file import MAX_KEY_LENGTH, Refused, shown

# A pickle is small beside the weights: one of 100,000 tensors takes some 4 million operations. An operation of one byte
# can make an empty dict, so the bounds keep a hostile pickle below 0.4 GB and a few seconds.
MAX_BYTES = 32 * 2**20
MAX_OPERATIONS = 4_000_000


class Symbol:
    """A name in a pickle that would be a class or a function; `make` turns arguments into an inert value."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[[tuple[Any, ...]], Any] | None = None):
        self.name = name
        self.make = make


class Record:
    """Stands for an object: the name of its class, and its attributes as the pickle gives them."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str):
        self.name = name
        self.fields: dict[str, Any] = {}


class SetItems(list):
    """The elements of a set, which may be anything and so are not hashed."""

    __slots__ = ()


_SCALARS = (str, int, float, bool, bytes, type(None))


def _check_key(key: Any) -> None:
    """Refuses dict keys that could take long to hash or to join: nested tuples, long strings, and huge ints that all
    hash to one number.
    """
    parts = key if type(key) is tuple and len(key) <= 4 else (key,)
    for part in parts:
        if (
            type(part) not in _SCALARS
            or (type(part) is int and not -(2**63) <= part < 2**63)
            or (type(part) in (str, bytes) and len(part) > MAX_KEY_LENGTH)
        ):
            raise Refused("has a dict with a key that is not a plain value, or very long")


def set_items(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Puts pairs from a pickle into a dict."""
    for key, value in pairs:
        _check_key(key)
        target[key] = value


class Machine:
    """Runs one pickle.

    Args:
        data: bytes or a memory map.
        position: where the pickle begins; after `load`, where it ended.
        symbols: full name -> Symbol, for every name that is understood.
        persistent: makes the value of a persistent id.
        prefix: names that begin with it stand for classes of inert objects.
    """

    def __init__(
        self,
        data: Any,
        position: int,
        symbols: Mapping[str, Symbol],
        persistent: Callable[[Any], Any],
        prefix: str | None = None,
    ):
        self.data = data
        self.position = position
        self._end = min(len(data), position + MAX_BYTES)
        self._symbols = symbols
        self._persistent = persistent
        self._prefix = prefix
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The pickled value.

        Raises:
            Refused: the pickle is damaged, too long, or does something that weights do not need.
        """
        stop = pickle.STOP[0]
        try:
            for _ in range(MAX_OPERATIONS):
                operation = self._take(1)[0]
                if operation == stop:
                    return self._stack.pop()
                handler = _HANDLERS.get(operation)
                if handler is None:
                    name = shown(chr(operation))
                    raise Refused(
                        f"has a pickle with the operation {name}, which weights do not need"
                    )
                handler(self)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise Refused(f"has a damaged pickle ({shown(str(error))})") from error
        raise Refused(f"has a pickle of more than {MAX_OPERATIONS} operations")

    def _take(self, size: int) -> bytes:
        start, end = self.position, self.position + size
        if end > self._end:
            cut = "is truncated" if end > len(self.data) else "has a pickle that is too long"
            raise Refused(f"{cut} (in a pickle)")
        self.position = end
        return self.data[start:end]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _to_mark(self) -> list[Any]:
        """Pops everything above the last mark, and the mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise IndexError("the stack is too short")
        self._stack[-count:] = [items]

    def _append(self, items: list[Any], kind: type) -> None:
        if type(self._stack[-1]) is not kind:
            raise TypeError("no list to append to")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("no dict to set items of")
        set_items(target, zip(items[::2], items[1::2], strict=True))

    def _set_one(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self._set([key, value])

    def _symbol(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full in self._symbols:
            self._push(self._symbols[full])
        elif self._prefix is not None and full.startswith(self._prefix):
            self._push(Symbol(full, lambda _: Record(full)))
        else:
            raise Refused(
                f"holds the Python object {shown(full)}, and of a pickle only tensors and plain values are read; "
                "where it was made, save its state_dict() alone, with safetensors or torch.save"
            )

    def _global(self) -> None:
        lines = []
        for _ in range(2):
            end = self.data.find(b"\n", self.position, min(self._end, self.position + 1000))
            if end < 0:
                raise Refused("has a damaged pickle")
            lines.append(self._take(end - self.position).decode("utf-8"))
            self.position += 1
        self._symbol(*lines)

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str or len(name) + len(module) > 2000:
            raise TypeError("a name that is no string")
        self._symbol(module, name)

    def _call(self) -> None:
        """REDUCE and NEWOBJ: an inert value in place of a call."""
        arguments, symbol = self._stack.pop(), self._stack.pop()
        if type(symbol) is not Symbol or symbol.make is None or type(arguments) is not tuple:
            raise TypeError("nothing that may be called")
        self._push(symbol.make(arguments))

    def _build(self) -> None:
        """Attributes: of a Record they are kept, of a dict (an OrderedDict's `_metadata`) they are not."""
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is Record:
            if type(state) is dict and all(type(name) is str for name in state):
                target.fields = state
        elif hasattr(target, "check_state"):
            target.check_state(state)
        elif type(target) is not dict:
            raise TypeError("nothing that has attributes")

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _text(self, size: int) -> None:
        self._push(self._take(size).decode("utf-8"))

    def _protocol(self) -> None:
        if self._take(1)[0] > pickle.HIGHEST_PROTOCOL:
            raise ValueError("an unknown protocol")


# Left out are the operations that only other pickles have: texts of protocol 0, extensions, out-of-band buffers.
_HANDLERS: dict[int, Callable[[Machine], None]] = {
    pickle.PROTO[0]: Machine._protocol,
    pickle.FRAME[0]: lambda m: m._take(8),  # only a hint for buffered readers
    pickle.MARK[0]: Machine._mark,
    pickle.POP[0]: lambda m: m._stack.pop(),
    pickle.NONE[0]: lambda m: m._push(None),
    pickle.NEWTRUE[0]: lambda m: m._push(True),
    pickle.NEWFALSE[0]: lambda m: m._push(False),
    pickle.BININT[0]: lambda m: m._push(m._number("<i")),
    pickle.BININT1[0]: lambda m: m._push(m._number("<B")),
    pickle.BININT2[0]: lambda m: m._push(m._number("<H")),
    pickle.LONG1[0]: lambda m: m._push(
        int.from_bytes(m._take(m._number("<B")), "little", signed=True)
    ),
    pickle.BINFLOAT[0]: lambda m: m._push(m._number(">d")),
    pickle.SHORT_BINUNICODE[0]: lambda m: m._text(m._number("<B")),
    pickle.BINUNICODE[0]: lambda m: m._text(m._number("<I")),
    pickle.BINUNICODE8[0]: lambda m: m._text(m._number("<Q")),
    pickle.SHORT_BINSTRING[0]: lambda m: m._text(m._number("<B")),  # Python 2's strings
    pickle.BINSTRING[0]: lambda m: m._text(m._number("<I")),
    pickle.SHORT_BINBYTES[0]: lambda m: m._push(m._take(m._number("<B"))),
    pickle.BINBYTES[0]: lambda m: m._push(m._take(m._number("<I"))),
    pickle.BINBYTES8[0]: lambda m: m._push(m._take(m._number("<Q"))),
    pickle.EMPTY_TUPLE[0]: lambda m: m._push(()),
    pickle.EMPTY_LIST[0]: lambda m: m._push([]),
    pickle.EMPTY_DICT[0]: lambda m: m._push({}),
    pickle.EMPTY_SET[0]: lambda m: m._push(SetItems()),
    pickle.TUPLE[0]: lambda m: m._push(tuple(m._to_mark())),
    pickle.TUPLE1[0]: lambda m: m._tuple_of(1),
    pickle.TUPLE2[0]: lambda m: m._tuple_of(2),
    pickle.TUPLE3[0]: lambda m: m._tuple_of(3),
    pickle.FROZENSET[0]: lambda m: m._push(SetItems(m._to_mark())),
    pickle.APPEND[0]: lambda m: m._append([m._stack.pop()], list),
    pickle.APPENDS[0]: lambda m: m._append(m._to_mark(), list),
    pickle.ADDITEMS[0]: lambda m: m._append(m._to_mark(), SetItems),
    pickle.SETITEM[0]: Machine._set_one,
    pickle.SETITEMS[0]: lambda m: m._set(m._to_mark()),
    pickle.BINPUT[0]: lambda m: m._put(m._number("<B")),
    pickle.LONG_BINPUT[0]: lambda m: m._put(m._number("<I")),
    pickle.MEMOIZE[0]: lambda m: m._put(len(m._memo)),
    pickle.BINGET[0]: lambda m: m._push(m._memo[m._number("<B")]),
    pickle.LONG_BINGET[0]: lambda m: m._push(m._memo[m._number("<I")]),
    pickle.GLOBAL[0]: Machine._global,
    pickle.STACK_GLOBAL[0]: Machine._stack_global,
    pickle.REDUCE[0]: Machine._call,
    pickle.NEWOBJ[0]: Machine._call,
    pickle.BUILD[0]: Machine._build,
    pickle.BINPERSID[0]: lambda m: m._push(m._persistent(m._stack.pop())),
}
