"""What runs of earlier versions saw is what they see when they go on: samples recorded before there were features."""

import json
from pathlib import Path

import numpy as np
import pytest

from clipjax.config import load_config
from clipjax.data.stream import Stream
from clipjax.defaults import base_config

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "stream.json").read_text())


def scenes(config):
    """Everything that draws from the sample's first generator: captions, the image, crop and colours, regions."""
    config.data.sources = {
        "a": {"kind": "synthetic", "size": 40, "length": 50},
        "b": {
            **{"kind": "scenes", "size": 96, "length": 30, "backgrounds": "plain"},
            "weight": 2.0,
        },
    }
    config.data.features.text.captions = {"kind": "several", "count": 2}
    config.data.features.regions = {"kind": "regions", "count": 3, "text_length": 6}
    config.data.features.language = {"kind": "language", "tags": ("en",)}
    config.seed = 5


@pytest.mark.parametrize("name", GOLDEN)
def test_samples_of_earlier_versions(name):
    config = load_config(f"{ROOT / 'configs' / 'quickstart.py'}", base_config())
    with config.unlocked():
        if name == "scenes":
            scenes(config)
    stream = Stream(config)
    for place, wanted in GOLDEN[name].items():
        sample = stream[int(place)]
        for field, value in wanted.items():
            if field == "mean":  # other versions of the decoder and the resizer round otherwise
                assert sample["image"].mean() == pytest.approx(value, abs=0.5)
            else:
                np.testing.assert_allclose(sample[field], value, atol=1e-3, err_msg=field)
