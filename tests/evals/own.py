"""Evaluators that the tests name by import path: good ones, and one of each mistake."""

import jax
import numpy as np


class Means:
    """The mean of the image embeddings, and of their tokens through the encoder's `outputs`."""

    def __init__(self, name, encoder, source, *, count=4):
        self.units = {"tokens": "", "length": "words"}
        self._encoder, self._images = encoder, [source[i]["image"] for i in range(len(source))]
        self._count = count

    def run(self, params):
        images = self._images[: self._count]
        batch = self._encoder.batch(images=images)
        found = self._encoder.outputs(params, batch)
        np.testing.assert_array_equal(
            found["image_embedding"], self._encoder.images(params, images)
        )
        self.protocol = {"kind": "means", "images": len(images), "chance": {"positive": 0.5}}
        return {
            "positive": np.float32((found["image_embedding"] > 0).mean()),
            "tokens": float(np.abs(found["image_tokens"]).mean()),
            "length": 6.1,
        }


class Alone:
    """Needs no data."""

    def __init__(self, name, encoder):
        self._encoder = encoder

    def run(self, params):
        scale = float(np.exp(params["logit_scale"]))
        return {"scale": scale, "half": 0.5}


class Two:
    """Compares two sources."""

    def __init__(self, name, encoder, sources, *, first="a", second="b"):
        self._counts = {key: len(source) for key, source in sources.items()}
        self._pair = first, second

    def run(self, params):
        a, b = (self._counts[key] for key in self._pair)
        return {"ratio": a / b}


class NoRun:
    def __init__(self, name, encoder):
        pass


class NoEncoder:
    def __init__(self, name):
        pass

    def run(self, params):
        return {}


class Returns:
    """Gives back what its setting says."""

    def __init__(self, name, encoder, *, what, note=""):
        self._what = what
        self.protocol = {"note": {1} if note == "set" else note}

    def run(self, params):
        return {
            "list": [1.0],
            "array": {"x": np.zeros(3)},
            "text": {"x": "0.5"},
            "none": {"x": None},
            "bool": {"x": True},
            "number": {1: 0.5},
            "good": {"x": 1},
        }[self._what]


class BadUnits:
    units = ("words",)

    def __init__(self, name, encoder):
        pass

    def run(self, params):
        return {}


class Fails:
    """Has a mistake in the method `when`."""

    def __init__(self, name, encoder, *, when="run"):
        self._when = when
        if when == "start":
            raise KeyError("labels")

    def run(self, params):
        if self._when == "gone":
            raise jax.errors.JaxRuntimeError("Connection closed by peer")
        return {"x": {}["labels"]}
