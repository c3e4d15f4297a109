"""tiny.py's run, fed by four kinds of sources at once: `mixture.py:STEPS@FOLDER`; tests/test_mixture.py makes the data.

Everything that could go out of step is switched on: other numbers of records, weights, a filter, damaged records,
several texts a sample, a policy for one source alone, regions, a window.
"""

from pathlib import Path

from clipjax.config import import_file

tiny = import_file(Path(__file__).with_name("tiny.py"))


def get_config(arg):
    steps, _, folder = arg.partition("@")
    config = tiny.get_config(steps)
    several = {"kind": "several", "count": 2}
    config.data.sources = {
        "tars": {
            **{"kind": "tars", "shards": f"{folder}/*.tar", "weight": 3.0},
            **{"filter": {"ranges": {"score": (0.3, None)}}},
        },
        "parquet": {"kind": "parquet", "files": f"{folder}/*.parquet", "weight": 1.5},
        "records": {
            **{"kind": "array_record", "files": f"{folder}/*.array_record", "weight": 1.0},
            **{"captions": {"kind": "sub_captions", "samples": 1, "long": ("long",)}},
        },
        "folder": {"kind": "captions", "file": f"{folder}/captions.jsonl", "window": (4, 8)},
    }
    config.data.features.text.captions = several
    config.data.features.language = {"kind": "language", "tags": ("en", "de")}
    config.data.features.regions = {"kind": "regions", "count": 3}
    config.data.max_bad_fraction = 1.0
    config.evals = {}
    return config
