"""Pickles that are programs: none of them runs, whatever it names and wherever it is planted."""

import copyreg
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from clipjax.convert.files import open_tensors, read_all
from clipjax.convert.files.torch_legacy import MAGIC, PROTOCOL
from clipjax.errors import UserError
from tests.convert.torch_bytes import (
    archive,
    call,
    group,
    mapping,
    module,
    name,
    number,
    pickled,
    sequence,
    tensor,
    text,
)

W = tensor((2,), (1,))


def legacy(value: bytes) -> bytes:
    heads = [
        number(MAGIC),
        number(PROTOCOL),
        mapping({"little_endian": pickle.NEWTRUE}),
        value,
        sequence(text("0")),
    ]
    return b"".join(map(pickled, heads)) + struct.pack("<q24f", 24, *range(24))


PLACES = {
    "top": archive,
    "entry": lambda plant: archive(mapping({"w": W, "x": plant})),
    "key": lambda plant: archive(mapping([(plant, W)])),
    "training state": lambda plant: archive(mapping({"w": W, "optimizer": mapping({"x": plant})})),
    "tensor": lambda plant: archive(mapping({"w": tensor((2,), (1,), of=plant)})),
    "discarded": lambda plant: archive(plant + pickle.POP + mapping({"w": W})),
    "attribute": lambda plant: archive(
        module("__torch__.M", mapping({"w": W, "x": plant})), scripted=True
    ),
    "state": lambda plant: archive(module("__torch__.M", plant), scripted=True),
    "legacy": lambda plant: legacy(mapping({"w": W, "x": plant})),
}


def test_the_places_are_read(tmp_path):
    """So a plant in them is met: without it these files are whole."""
    for place, make in PLACES.items():
        harmless = {
            "top": mapping({"w": W}),
            "key": text("w"),
            "tensor": None,
            "state": mapping({"w": W}),
        }
        (tmp_path / "x").write_bytes(make(harmless.get(place, number(1))))
        assert read_all(open_tensors(tmp_path / "x").tensors)["w"].tolist() == [0, 1], place


class Reduced:
    """Pickles as any call."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


class Stateful:
    """Pickles with a state that its class would act upon."""

    def __setstate__(self, path):
        Path(path).mkdir()


def python_plants(mark: str) -> dict[str, object]:
    stateful = Stateful()
    stateful.path = mark
    return {
        "os": Reduced(os.mkdir, (mark,)),
        "eval": Reduced(eval, (f"__import__('os').mkdir({mark!r})",)),
        "exec": Reduced(exec, (f"import os; os.mkdir({mark!r})",)),
        "subprocess": Reduced(subprocess.check_call, (["mkdir", mark],)),
        "open": Reduced(open, (mark, "w")),
        "method": Reduced(Path.mkdir, (Path(mark),)),
        "map": Reduced(map, (os.mkdir, [mark])),
        "items": Reduced(list, (), None, map(str, [mark])),
        "state": Reduced(Reduced, (), {"path": mark}),
        "setstate": stateful,
        "import": Reduced(__import__, ("antigravity",)),
    }


def byte_plants(mark: str) -> dict[str, bytes]:
    made = name("posix", "mkdir")
    path = text(mark)
    tensor_function = name("torch._utils", "_rebuild_tensor_v2")
    return {
        "reduce": call(made, path),
        "only named": made,
        "stack global": text("posix")
        + text("mkdir")
        + pickle.STACK_GLOBAL
        + group(path)
        + pickle.REDUCE,
        "dotted": text("os")
        + text("path.os.mkdir")
        + pickle.STACK_GLOBAL
        + group(path)
        + pickle.REDUCE,
        "no text": number(1) + number(2) + pickle.STACK_GLOBAL,
        "inst": pickle.MARK + path + pickle.INST + b"posix\nmkdir\n",
        "obj": pickle.MARK + made + path + pickle.OBJ,
        "newobj": made + group(path) + pickle.NEWOBJ,
        "newobj ex": made + group(path) + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
        "ext1": pickle.EXT1 + b"\xf0" + group(path) + pickle.REDUCE,
        "ext2": pickle.EXT2 + b"\xf0\x00" + group(path) + pickle.REDUCE,
        "ext4": pickle.EXT4 + b"\xf0\x00\x00\x00" + group(path) + pickle.REDUCE,
        "call of text": call(text("posix.mkdir"), path),
        "call of a dict": call(mapping({}), path),
        "call of a dtype": call(name("torch", "float32"), path),
        "call without a tuple": name("torch", "Size") + sequence() + pickle.REDUCE,
        "build on a function": tensor_function + mapping({"__call__": path}) + pickle.BUILD,
        "build on a class": name("collections", "OrderedDict")
        + mapping({"items": path})
        + pickle.BUILD,
        "build on text": text("x") + mapping({"y": path}) + pickle.BUILD,
        "build on a tensor": W + mapping({"shape": path}) + pickle.BUILD,
        "append to a dict": mapping({}) + path + pickle.APPEND,
        "append to a tuple": group() + path + pickle.APPEND,
        "set on a list": sequence() + path + path + pickle.SETITEM,
        "no storage": call(
            tensor_function, path, number(0), group(), group(), pickle.NONE, pickle.NONE
        ),
        "few arguments": call(tensor_function),
        "from a type": call(
            name("torch._tensor", "_rebuild_from_type_v2"), made, made, group(path), pickle.NONE
        ),
        "rebuild of text": call(
            name("torch._tensor", "_rebuild_from_type_v2"), path, path, group(), pickle.NONE
        ),
        "parameter of text": call(
            name("torch._utils", "_rebuild_parameter"), path, pickle.NONE, pickle.NONE
        ),
        "persistent text": path + pickle.BINPERSID,
        "persistent module": group(text("module"), made, path, path, number(1)) + pickle.BINPERSID,
        "persistent id": pickle.PERSID + b"posix.mkdir\n",
        "encode by code": call(name("_codecs", "encode"), path, text("idna")),
        "numpy object": call(name("numpy", "dtype"), text("O8")),
        "numpy scalar of text": call(name("numpy.core.multiarray", "scalar"), path, path),
        "numpy load": call(name("numpy", "load"), path),
        "torch load": call(name("torch", "load"), path),
        "torch jit": call(name("torch.jit._pickle", "os.mkdir"), path),
        "torch hub": call(name("torch.hub", "load"), path),
        "near name": call(name("__torch__x", "mkdir"), path),
        "near prefix": call(name("x.__torch__", "mkdir"), path),
        "builtins": call(name("builtins", "getattr"), path, path),
        "copyreg": call(name("copyreg", "_reconstructor"), made, made, pickle.NONE),
        "memo": made + pickle.BINPUT + b"\x07" + pickle.POP + pickle.BINGET + b"\x07",
        "stranger in the memo": pickle.BINGET + b"\xee",
        "underflow": pickle.POP * 50,
        "no mark": pickle.TUPLE + pickle.TUPLE,
        "line without end": pickle.GLOBAL + b"x" * 3000,
        "protocol": pickle.PROTO + b"\x99",
        "next buffer": pickle.NEXT_BUFFER,
        "bytearray": pickle.BYTEARRAY8 + struct.pack("<Q", 2**40),
        "long string": pickle.BINUNICODE8 + struct.pack("<Q", 2**63),
        "long bytes": pickle.BINBYTES8 + struct.pack("<Q", 2**40),
        "long number": pickle.LONG4 + struct.pack("<i", 2**31 - 1),
        "number of digits": pickle.LONG + b"9" * 5000 + b"L\n",
        "huge key": mapping([(number(2**200), number(1))]),
        "list key": mapping([(sequence(), number(1))]),
        "nested key": mapping([(group(group(number(1))), number(1))]),
        "surrogate": pickle.BINUNICODE + b"\x03\0\0\0\xed\xa0\x80",
        "set of a tensor": call(name("builtins", "set"), W),
        "counter": call(name("collections", "Counter"), path),
    }


MARK = "planted"
ALL_PLANTS = {
    **{key: pickle.dumps(plant, 2)[2:-1] for key, plant in python_plants(MARK).items()},
    **{f"{key} (4)": pickle.dumps(plant, 4)[2:-1] for key, plant in python_plants(MARK).items()},
    **byte_plants(MARK),
}


@pytest.fixture
def extension():
    """Code 240 is os.mkdir, and Python has it in its cache."""
    copyreg.add_extension("posix", "mkdir", 240)
    pickle.loads(pickle.EXT1 + b"\xf0.")
    yield
    copyreg.remove_extension("posix", "mkdir", 240)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("plant", ALL_PLANTS)
def test_a_planted_pickle_is_not_run(tmp_path, monkeypatch, extension, plant):
    monkeypatch.chdir(tmp_path)
    assert "antigravity" not in sys.modules
    for place, make in PLACES.items():
        Path("x").write_bytes(make(ALL_PLANTS[plant]))
        with pytest.raises(UserError) as caught:
            read_all(open_tensors("x").tensors)
        assert os.listdir() == ["x"], place
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()
    assert "antigravity" not in sys.modules


def test_the_plants_work_where_they_are_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for plant in ("os", "eval", "subprocess", "open", "reduce", "stack global", "inst", "obj"):
        pickle.loads(pickled(ALL_PLANTS[plant]))
        assert Path(MARK).exists(), plant
        Path(MARK).rmdir() if Path(MARK).is_dir() else Path(MARK).unlink()


@pytest.mark.parametrize(
    "plant",
    ["__torch__.os.system", "__torch__.builtins.eval", "__torch__.a\tb", "__torch__.__class__"],
)
def test_names_of_torchscript_classes_mean_nothing(tmp_path, plant):
    fields = mapping(
        {"__class__": text("x"), "__setstate__": text("x"), "__dict__": mapping({}), "w": W}
    )
    inner = module(plant, fields)
    called = call(name(*plant.rsplit(".", 1)), text("rm -rf"))
    path = tmp_path / "x"
    path.write_bytes(
        archive(module("__torch__.M", mapping({"a": inner, "b": called})), scripted=True)
    )
    file = open_tensors(path)
    assert list(file.tensors) == ["a.w"]
    assert file.other == {}


def test_the_way_out_is_named(tmp_path):
    (tmp_path / "x").write_bytes(archive(name("my_project.models", "CLIP")))
    with pytest.raises(
        UserError, match=r"object 'my_project.models.CLIP', .* save its state_dict\(\) alone"
    ):
        open_tensors(tmp_path / "x")


def doubled(times: int, first: bytes) -> bytes:
    """A list of lists of lists, each the one before twice: 2 ** times values in a few bytes."""
    put, get = pickle.LONG_BINPUT, pickle.LONG_BINGET
    value = first + put + struct.pack("<I", 1000)
    for i in range(1000, 1000 + times):
        index, following = struct.pack("<I", i), struct.pack("<I", i + 1)
        value += pickle.POP + sequence(get + index, get + index) + put + following
    return value


def itself(kind: bytes) -> bytes:
    """A dict or an object that has itself as an entry."""
    body = kind + pickle.BINPUT + b"\x99"
    return body + pickle.MARK + text("x") + pickle.BINGET + b"\x99" + pickle.SETITEMS


def cyclic_module() -> bytes:
    start = name("__torch__", "M") + pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.BINPUT + b"\x99"
    return start + mapping({"x": pickle.BINGET + b"\x99"}) + pickle.BUILD


def wide_module() -> bytes:
    """A thousand modules that are all the same one, which has a thousand tensors."""
    get = pickle.BINGET + b"\x98"
    many = b"".join(text(str(i)) + get for i in range(1000))  # first the tensor, then the module
    inner = W + pickle.BINPUT + b"\x98" + pickle.POP
    inner += name("__torch__", "M") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    inner += pickle.EMPTY_DICT + pickle.MARK + many + pickle.SETITEMS + pickle.BUILD
    inner += pickle.BINPUT + b"\x98" + pickle.POP
    outer = name("__torch__", "M") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    return inner + outer + pickle.EMPTY_DICT + pickle.MARK + many + pickle.SETITEMS + pickle.BUILD


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (mapping({"x": doubled(40, sequence(number(1)))}), "name each other too often"),
        (mapping({"x": doubled(40, W)}), "name each other too often|more than 100000 tensors"),
        (mapping({"x": pickle.EMPTY_LIST * 100_000 + pickle.APPEND * 99_999}), "nested too deeply"),
        (mapping({"x": itself(pickle.EMPTY_DICT)}), "nested too deeply"),
        (itself(pickle.EMPTY_DICT), "nested too deeply"),
        (
            mapping([(group(text("a" * 900) + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000), W)]),
            "not a plain value",
        ),
        (pickle.EMPTY_DICT * 4_000_001, "more than 4000000 operations"),
    ],
)
def test_bombs(tmp_path, value, match):
    (tmp_path / "x").write_bytes(archive(value))
    with pytest.raises(UserError, match=match):
        open_tensors(tmp_path / "x")


@pytest.mark.parametrize("value", [cyclic_module(), wide_module()])
def test_bombs_of_modules(tmp_path, value):
    (tmp_path / "x").write_bytes(archive(value, scripted=True))
    with pytest.raises(UserError, match=r"nested too deeply|more than 100000 tensors"):
        open_tensors(tmp_path / "x")
