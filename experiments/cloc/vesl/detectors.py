"""Open-vocabulary detectors. `--detector` is a key of `KINDS` or an import path.

A detector has `load()`, which is called once in every process, and is called with a batch of `Example`s; it returns the
`Detections` (assign.py) of each of them: boxes, and the score of each box for each of the example's phrases.
"""

KINDS = {
    "owlv2": "experiments.cloc.vesl.owlv2:OwlV2",
    "truth": "experiments.cloc.vesl.truth:TruthDetector",
}
