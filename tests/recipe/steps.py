"""Functions of call steps for the tests of recipes."""

import json
import os
import time
from pathlib import Path


def write(value, *, folder):
    """Writes a file, and says in the log of this test how often it was called."""
    (folder / "value.txt").write_text(str(value))
    return {"value": value, "deep": {"half": value / 2}, "protocol": {"units": {"value": "px"}}}


def double(source):
    """Reads what another step has written."""
    return {"value": 2 * int((Path(source) / "value.txt").read_text())}


def cores(*, folder):
    """The cores that this process may use; long enough that two of them overlap."""
    start = time.time()
    time.sleep(1.0)
    return {"cores": sorted(os.sched_getaffinity(0)), "start": start, "end": time.time()}


def fail():
    raise ValueError("on purpose")


def wrong():
    return [1, 2]


def not_json():
    return {"a": {1, 2}}


def slow(*, folder):
    """Waits for a file beside its folder, and says that it has begun."""
    (folder.parent / "begun").write_text(str(os.getpid()))
    while not (folder.parent / "go").exists():
        time.sleep(0.05)
    with (folder.parent / "ran").open("a") as file:
        file.write("once\n")


def noisy(seed, level):
    """A metric that differs a little between seeds."""
    values = {"accuracy": level + 0.01 * seed, "length": 6 + level + seed}
    chance = {"accuracy": 0.25}
    return values | {"protocol": {"chance": chance, "units": {"length": "words"}}}


def told():
    return json.loads("{}")
