"""Features of one's own, right and wrong, that the tests name by import path."""

import jax
import numpy as np

from clipjax.data.bad import BadRecord


def struct(shape=(), dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


class Tilt:
    """Draws a number; keeps what it was given."""

    def __init__(self, config, *, name, degrees=10.0):
        self.config, self.name, self.degrees, self.opened = config, name, degrees, 0

    def open(self):
        self.opened += 1

    def fields(self):
        return {self.name: struct()}

    def __call__(self, record, view, rng):
        assert self.opened == 1
        return {self.name: np.float32(rng.uniform(-self.degrees, self.degrees))}


class Seen:
    """What the others left in the view."""

    after = ("extra", "text")

    def fields(self):
        return {"seen": struct((3,), np.int32)}

    def __call__(self, record, view, rng):
        assert view.frame("image").size == view.frames["image"][0].size
        number = int(view.captions["text"][0].split()[-1])
        return {"seen": np.array([number, view.index, len(view.captions["extra"])], np.int32)}


class Wrong:
    """Whatever is asked for goes wrong."""

    def __init__(self, *, how):
        self.how = how
        if how == "init":
            raise KeyError("nothing here")

    def fields(self):
        if self.how == "fields":
            return 1 / 0
        declared = {
            "none": None,
            "empty": {},
            "tuple": {"a": (3,)},
            "name": {"a b": struct()},
            "reserved": {"sample_id": struct()},
            "int64": {"a": jax.ShapeDtypeStruct((), np.dtype("int64"))},
            "float64": {"a": np.zeros(2)},
            "strings": {"a": np.zeros(2, "U3")},
            "image": {"image": struct()},
        }
        return declared.get(self.how, {"a": struct((2,), np.int32), "b": struct()})

    def open(self):
        if self.how == "open":
            raise FileNotFoundError("no such file: a.npz")

    def __call__(self, record, view, rng):
        good = {"a": np.zeros(2, np.int32), "b": np.float32(0)}
        if self.how == "call":
            return {"a": record["no such column"]}
        if self.how == "bad":
            raise BadRecord("a column is missing", "the feature 'wrong' finds nothing")
        changes = {
            "list": [1],
            "more": good | {"aa": 1},
            "fewer": {"a": good["a"]},
            "shape": good | {"a": np.zeros(3, np.int32)},
            "dtype": good | {"a": np.zeros(2)},
        }
        return changes.get(self.how, good)


class NoCall:
    def fields(self):
        return {"a": struct()}


class Numbered:
    """A source without images; number `index` says what it is."""

    def __init__(self, length=20, missing=()):
        self._length, self._missing = length, missing

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        record = {
            "text": [f"number {index}"],
            "kind": ("cat", "dog", "cow")[index % 3],
            "group": index % 4,
            "labels": list(range(index % 4 + 1)),
            "score": index / 2,
            "row": [index, index + 1],
            "hard": [f"hard {index}", "harder"][: index % 3],
        }
        return {k: v for k, v in record.items() if k not in self._missing}


class Reversed:
    """An order: the last record first, always."""

    def __init__(self, records, *, step=1):
        self._lengths, self._step = records.lengths, step

    def draw(self, place, number):
        return 0, self._lengths[0] - 1 - (place * self._step + number) % self._lengths[0]


class Lost:
    def __init__(self, records, how="far"):
        self._how = how

    def draw(self, place, number):
        return (0, 10**9) if self._how == "far" else None
