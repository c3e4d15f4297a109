"""Parts that the tests of VESL put in the place of models."""

import datetime
import time

import numpy as np

from clipjax.data.bad import BadRecord
from experiments.cloc.vesl.assign import Detections
from experiments.cloc.vesl.truth import TruthDetector
from tests.tiny_images import jpeg, noise


class SlowTruth(TruthDetector):
    """Takes its time over each batch, so that there is some in which to be killed."""

    def __call__(self, examples):
        time.sleep(0.1)
        return super().__call__(examples)


class Hostile:
    """Good records between bad ones of every sort; `number` says which is which."""

    def __len__(self):
        return 28

    def __getitem__(self, index):
        good, kind = jpeg(noise(index)), index % 7
        if kind == 1:
            raise BadRecord("json is broken")
        image = {2: b"no image", 3: good[: len(good) // 2], 4: [good, good]}.get(kind, good)
        texts = {5: [" "], 6: ["a purple cat"]}.get(kind, ["a red cat"])
        return {"image": image, "text": texts, "language": "en", "number": index}


class Odd:
    """Records with a field that ArrayRecord cannot hold, and a large one."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        more = {"created": datetime.date(2024, 1, 1), "large": b"0" * 100_000}
        return {"image": jpeg(noise(index)), "text": ["a red cat"]} | more


class Fragile(TruthDetector):
    """Falls over at the record whose number is `at`, and fails from then on."""

    at = 0

    def __call__(self, examples):
        if any(e.record["number"] >= self.at for e in examples):
            raise ZeroDivisionError("out of order")
        return super().__call__(examples)


class Gone:
    """A source whose disk goes away after the records that a job looks at first."""

    looks = 0

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.looks >= len(self):
            raise OSError("the disk is gone")
        type(self).looks += 1
        return {"image": jpeg(noise(index)), "text": ["a red cat"]}


class Fussy:
    """A detector that fails on one phrase: alone, or with the whole batch that it is in."""

    def load(self):
        self.calls = 0

    def __call__(self, examples):
        self.calls += 1
        if any("a purple cat" in e.phrases for e in examples):
            raise ZeroDivisionError("no cat")
        box = np.array([[0.1, 0.2, 0.6, 0.9]], np.float32)
        return [Detections(box, np.full((1, len(e.phrases)), 0.5, np.float32)) for e in examples]
